"""What the tests of trouble share: a job that waits for a word, quick retries, what `status` says, what the administrator is told."""

import email
import email.policy

HOLD = "echo run >> runs.log; for _ in $(seq 2000); do [ -e go ] && break; sleep 0.05; done; cat in.txt > out.txt\n"
QUICK = 'retry = { first = "1s", maximum = "2s" }\n'


def quick(*rules):
    """Return an edit of the rules, after which these try again soon."""
    return lambda text: "".join(
        line + (QUICK if line.strip() in {f'name = "{rule}"' for rule in rules} else "") for line in text.splitlines(keepends=True)
    )


def seldom(text):
    """Change the configuration so that no poll finds what an event should have told."""
    return text.replace("[host.b01]", '[host.b01]\npoll = "10m"')


def floor(size):
    """Return a change of the configuration to this disk_floor."""
    return lambda text: text.replace('disk_floor = "1MB"', f'disk_floor = "{size}"')


def end(site, job, state="DONE", seconds=40):
    fields = site.wait_state(job, state, seconds)
    site.wait(site.quiet, 30, "quiet")
    return fields


def waits_for(site, job, *words, seconds=20):
    """Wait until `status` says that a job waits, in these words."""
    said = lambda: site.watchties("status", job, check=False).stdout  # noqa: E731
    site.wait(lambda: all(word in said() for word in words), seconds, f"status {job} says {words}: {said()}")


def told(site):
    """Return all lines that the administrator was sent, or is about to be; for a moment, a notice may be both."""
    texts = [path.read_text() for path in (site.state / "notices").iterdir() if not path.name.endswith(".new")]
    for path in site.mail.glob("notice*.eml"):
        letter = email.message_from_string(path.read_text(), policy=email.policy.default)
        texts.append(f"{letter['Subject']}\n{letter.get_content()}")
    return "\n".join(texts).splitlines()


def times(site, subject):
    """Return how often a subject was told. Several notices in one mail: its own subject is the first one's `(and 2 more)`."""
    return sum(line.startswith(subject) and not line.endswith(" more)") for line in told(site))

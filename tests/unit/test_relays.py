"""What the daemon takes from a far host's relay, and what it says when one ends: a real program at the other end of the pipes."""

import asyncio

import pytest
from watchties import calls, children, relays, ssh
from watchties.errors import Unreachable
from watchties.relays import Link, Listener
from watchties.ssh import Far

SPEAK = """import sys
nonce = sys.argv[sys.argv.index("--nonce") + 1]
sys.stderr.write("Welcome!\\n")
sys.stderr.flush()
sys.stdout.write("main\\tPENDING\\tann/banner\\t1\\n#relay " + nonce + " 2\\n")
{says}
"""


class Heard(Listener):
    """Keeps all that a Link tells."""

    def __init__(self):
        self.told = []
        super().__init__(*(self.take(word) for word in ("announce", "listed", "up", "down", "bad", "problem")))

    def take(self, word):
        return lambda *what: self.told.append((word, *what))

    def all(self, word):
        return [what for kind, *what in self.told if kind == word]


def relay_that(says, tmp_path, heartbeat=5.0):
    """Return what a Link told of one relay from its start to its end."""
    (tmp_path / "scripts").mkdir(exist_ok=True)
    (tmp_path / "scripts/relay.py").write_text(SPEAK.format(says=says))
    heard = Heard()
    link = Link(Far("vision", root=str(tmp_path)), "web", {"main": ("user_data", "*/*")}, "relay", 60.0, heartbeat, heard)
    asyncio.run(asyncio.wait_for(link._relay_once(), 30))
    return heard


def test_a_line_that_was_cut_is_not_heard(tmp_path):
    heard = relay_that('sys.stdout.write("main\\tPENDING\\tann/whole\\t1712345678901234567\\nmain\\tPENDING\\tann/cut\\t17123")', tmp_path)
    assert [(said.job, said.ns) for said, in heard.all("announce")] == [("ann/whole", 1712345678901234567)]
    assert not heard.all("bad")


@pytest.mark.parametrize("ns", ["", "x", "1e9", "1_0", "9" * 20, "9" * 4000, " 5"])
def test_what_is_no_identity_is_refused(tmp_path, ns):
    heard = relay_that(f'sys.stdout.write("main\\tPENDING\\tann/e1\\t{ns}\\n")', tmp_path)
    assert not heard.all("announce") and len(heard.all("bad")) == 1


def test_why_a_relay_ended_is_the_last_that_it_said_and_not_its_banner(tmp_path):
    late = 'import time; sys.stdout.flush(); time.sleep(0.2); sys.exit("no room for a relay")'
    assert heard_problems(relay_that(late, tmp_path)) == ["the relay ended: no room for a relay"]


def test_a_relay_that_says_much_on_standard_error_is_not_stopped_by_it(tmp_path):
    much = 'sys.stderr.write("warning\\n" * 500_000); sys.stdout.write("main\\tPENDING\\tann/e1\\t5\\n")'
    heard = relay_that(much, tmp_path)
    assert len(heard.all("announce")) == 1 and heard_problems(heard) == ["the relay ended: warning"]


def test_a_relay_that_falls_silent_is_noticed_and_one_that_beats_is_not(tmp_path):
    silent = "sys.stdout.flush()\nfor line in sys.stdin: pass"
    assert relay_that(silent, tmp_path, 0.2).all("down") == [["vision", "host vision: its relay fell silent"]]
    beats = 'import time\nfor _ in range(12): print("#beat", flush=True); time.sleep(0.1)'
    assert not relay_that(beats, tmp_path, 0.2).all("down")


def test_the_daemon_beats(tmp_path):
    echo = 'sys.stdout.flush()\nfor line in [sys.stdin.readline() for _ in range(2)]: print("#error heard", line.strip())'
    assert heard_problems(relay_that(echo, tmp_path, 0.2)) == ["heard beat", "heard beat", "the relay ended: Welcome!"]


def heard_problems(heard):
    return [text for _, text in heard.all("problem")]


def test_a_program_that_cannot_be_started_here_is_said_in_one_line(monkeypatch):
    monkeypatch.setenv("PATH", "/nonexistent")
    far = Far("b01", ssh="b01")
    with pytest.raises(Unreachable, match="^ssh cannot be started here: No such file or directory$"):
        asyncio.run(calls.call(far, "true"))
    heard = Heard()
    asyncio.run(Link(far, "compute", {}, "relay", 60.0, 5.0, heard)._relay_once())
    assert heard.all("down") == [["b01", "ssh cannot be started here: No such file or directory"]]


def test_a_host_is_probed_soon_also_after_the_clock_was_set_back(tmp_path, monkeypatch):
    link = Link(Far("vision", root=str(tmp_path)), "web", {"main": ("user_data", "*/*")}, "relay", 60.0, 5.0, Heard())
    link.breaker.failed("it does not answer", relays.time.time() + 86400.0)
    waited = []

    async def pause(seconds, wakes):
        waited.append(seconds)

    monkeypatch.setattr(link, "_pause", pause)
    asyncio.run(link._answers())
    assert waited[0] <= 300.0


def test_a_host_that_never_stops_talking_does_not_fill_the_memory(tmp_path, monkeypatch):
    monkeypatch.setattr(children, "MOST", 1 << 20)
    for flood in "cat /dev/zero", "cat /dev/zero >&2":
        with pytest.raises(Unreachable, match="^host vision did not answer: it said more than 1 MB; look at what its login"):
            asyncio.run(calls.call(Far("vision", root=str(tmp_path)), flood))
    assert asyncio.run(calls.call(Far("vision", root=str(tmp_path)), "cat; exit 3", b"x" * 900_000)) == ("x" * 900_000, 3)


def test_what_a_host_says_is_fit_for_a_terminal(tmp_path):
    heard = relay_that('sys.stderr.write("last words \\x1b[2J\\x07\\n"); sys.exit(3)', tmp_path)
    assert [text for _, text in heard.all("problem") if "last words ?[2J?" in text] and not [t for _, t in heard.all("problem") if "\x1b" in t]
    with pytest.raises(Unreachable, match=r"^host b01 did not answer: gone .\[2J$"):
        ssh.unframe("0123456789abcdef", "b01", "", "Welcome!\ngone \x1b[2J\n")

"""Daemons and passes that want the same jobs at the same moment, a configuration that changes under load."""

import os
import re
import signal
import subprocess
import time

import pytest
from races_kit import Log, command, consistent, drawing, edit, pause
from site_kit import Site

AT_WORK = re.compile(r"watchties: a watchties daemon is at work already in \S+ \(pid (\d+)\)")
IN_HANDS = re.compile(r"watchties: tree main: \S+ is in the hands of another watchties \(pid (\d+)\), which has another state directory; .*")


def begin(site, job, seconds="0.2"):
    (site.web / job).mkdir(parents=True, exist_ok=True)
    (site.web / job / "command").write_text(command(seconds))
    edit(site.web / job, "web.txt", job.partition("/")[2].replace(" ", ""))
    site.touch(job)


def once(site, log, jobs, seconds=180):
    """Wait until all are DONE and quiet; each has run once."""
    site.wait(lambda: all(site.marker(job)[0] == "DONE" for job in jobs), seconds, "all DONE")
    site.wait(site.quiet, 60, "quiet")
    assert {job: len(log.spans(job)) for job in jobs} == dict.fromkeys(jobs, 1)
    for job in jobs:
        consistent(site, job)


def contend(site, states):
    """Start one daemon for each state directory at once; return (the one that stays, what each of the others said)."""
    words = [site.program, "run"]
    started = [subprocess.Popen(words, env=site.environment() | {"WATCHTIES_STATE_DIR": str(state)}, stdin=subprocess.DEVNULL,
                                stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) for state in states]  # fmt: skip
    end = time.monotonic() + 60
    while sum(process.poll() is None for process in started) > 1 and time.monotonic() < end:
        time.sleep(0.05)
    if sum(process.poll() is None for process in started) > 1:
        for process in started:
            process.kill()
            process.communicate()
        raise AssertionError("two daemons are at work at once")
    (left,) = [process for process in started if process.poll() is None]
    said = [process.communicate()[1] for process in started if process is not left]
    assert all(process.returncode == 2 for process in started if process is not left)
    return left, said


@pytest.mark.slow
@pytest.mark.parametrize("which", ["one state directory", "a state directory each"])
def test_of_daemons_started_at_once_one_works_and_the_others_say_so_in_one_line(tmp_path, seed, long, figure, which):
    draw, rounds = drawing(seed), 25 if long else 3
    site = Site(tmp_path, max_running=10)
    site.program = os.path.join(os.path.dirname(os.sys.executable), "watchties")
    log, jobs = Log(site), []
    for n in range(rounds):
        jobs += [f"ann/exp {n} {m}" for m in range(2)]
        for job in jobs[-2:]:
            begin(site, job, "0.05")
        count = draw.randint(2, 3)
        states = [site.state if which.startswith("one") else tmp_path / f"state{m}" for m in range(count)]
        left, said = contend(site, states)
        line = AT_WORK if which.startswith("one") else IN_HANDS
        for text in said:
            told = [row for row in text.splitlines() if " INFO " not in row and " WARNING " not in row]
            assert len(told) == 1 and (match := line.fullmatch(told[0])) and int(match[1]) == left.pid, f"{told}, left is {left.pid}"
        site.process = left
        site.wait(lambda: all(site.marker(job)[0] == "DONE" for job in jobs), 120, "the one that is left works")
        left.send_signal(draw.choice((signal.SIGTERM, signal.SIGKILL)))
        left.communicate(timeout=60)
        site.process = None
    assert {job: len(log.spans(job)) for job in jobs} == dict.fromkeys(jobs, 1)
    figure(f"{rounds} times 2 or 3 daemons started at once, {which}: one each time at work, {len(jobs)} jobs ran once, 0 twice")


@pytest.mark.slow
def test_passes_beside_a_daemon_that_is_killed_and_started(tmp_path, seed, long, figure):
    draw, many = drawing(seed), 200 if long else 12
    site = Site(tmp_path, max_running=10, daemon='grace = "2s"\nstop_timeout = "1s"')
    log, jobs, passes, program = Log(site), [], [], os.path.join(os.path.dirname(os.sys.executable), "watchties")
    site.start().wait_ready()
    try:
        for n in range(many):
            jobs.append(f"user{n % 5}/exp {n}")
            begin(site, jobs[-1])
            if n % 2:
                words = [program, "transfer"]
                passes.append(subprocess.Popen(words, env=site.environment(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True))
            if n % 6 == 5:
                site.kill() if draw.random() < 0.5 else site.stop()
                pause(draw, 1)
                site.start()
            pause(draw, 0.8)
        said = [process.communicate(timeout=120) for process in passes]
        assert all(process.returncode == 0 for process in passes), said
        once(site, log, jobs)
        beside = sum("a watchties daemon is at work already" in out for out, _ in said)
        figure(f"{len(passes)} passes started beside a daemon that was ended and started {many // 6} times ({beside} found it at work): "
               f"{many} jobs ran once, 0 twice")  # fmt: skip
    finally:
        site.stop()


# ---- the configuration, under load ----

OTHER = """
[host.b02]
role = "compute"
scheduler = "shell"
root = "{base}/b02/compties"
[tree.second]
root = "{base}/v11/second"
web = "vision"
compute = ["b02"]
path = {{ vision = "second", b02 = "user_data" }}
"""
RULE = '\n[[rule]]\nname = "plots"\non = ["mirror:DONE"]\nafter = ["push"]\n'
NOT_TAKEN = "the configuration was not taken, the former one stays"


class Changing:
    """The configuration of a site that is edited and read again. valid: what may be put there; wrong: what may not, and what is said."""

    def __init__(self, site, draw):
        self.site, self.draw, self.taken, self.refused = site, draw, 0, 0
        self.more, self.limits = site.conf / "80-more.toml", site.conf / "10-site.toml"
        self.valid = ["", RULE, OTHER.format(base=site.base), OTHER.format(base=site.base) + RULE]
        self.wrong = {"[host.b03]\nrole = 'comput'\n": "80-more.toml", "[tree\n": "80-more.toml", RULE.replace("plots", "nowhere"): "nowhere",
                      f'[tree.twin]\nroot = "{site.mirror}"\nweb = "vision"\ncompute = ["b01"]\n': "twin"}  # fmt: skip

    def change(self):
        """Edit something and have it read again; wait until the daemon has told what it makes of it."""
        said = (self.site.base / "daemon.out").read_text()
        if self.draw.random() < 0.4:
            text, expected = self.draw.choice(list(self.wrong.items()))
            self.more.write_text(text)
            self.refused += 1
        else:
            self.more.write_text(self.draw.choice(self.valid))
            running = re.sub(r"max_running = \d+", f"max_running = {self.draw.randint(2, 12)}", self.limits.read_text())
            self.limits.write_text(running)
            expected = "the configuration was read again"
            self.taken += 1
        self.site.process.send_signal(signal.SIGHUP)
        news = lambda: (self.site.base / "daemon.out").read_text()[len(said) :]  # noqa: E731
        self.site.wait(lambda: "is at work: main" in news(), 60, "the next daemon is at work")
        assert expected in news() and (expected == "the configuration was read again") == (NOT_TAKEN not in news()), news()


@pytest.mark.slow
def test_a_configuration_that_is_edited_under_load_loses_nothing(tmp_path, seed, long, figure):
    draw, many = drawing(seed), 300 if long else 24
    site = Site(tmp_path, max_running=6, hooks={"plots": "sleep 0.3\necho plotted >> \"$WATCHTIES_JOB_DIR/plots\"\n"})
    for folder in "scripts", "bin", "user_data":
        (tmp_path / "b02/compties" / folder).mkdir(parents=True)
    (site.web.parent / "second").mkdir()
    for name in "agent.sh", "relay.py":
        (tmp_path / "b02/compties/scripts" / name).write_bytes((site.compute.parent / "scripts" / name).read_bytes())
    log, jobs = Log(site), [f"user{n % 5}/exp {n}" for n in range(many)]
    site.start().wait_ready()
    try:
        changing = Changing(site, draw)
        for first in range(0, many, 6):
            for job in jobs[first : first + 6]:
                begin(site, job)
                pause(draw, 0.2)
            changing.change()
        changing.more.write_text("")
        site.process.send_signal(signal.SIGHUP)
        once(site, log, jobs, 400 if long else 120)
        figure(f"{changing.taken} valid and {changing.refused} wrong edits of conf.d, each with SIGHUP, under {many} jobs: each was taken "
               f"or refused with its reason, every job ran once, 0 lost, 0 twice")  # fmt: skip
    finally:
        site.stop()

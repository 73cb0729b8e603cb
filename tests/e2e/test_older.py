"""The older commands on v11, as pipelines, with the relay on vision at the other end of a real ssh."""

import contextlib
import os
import subprocess
import time
from collections import Counter
from pathlib import Path

import pytest
from helpers import put, wait_for
from lab_kit import PROGRAM, LabSite, give

pytestmark = pytest.mark.slow

GET, SUBMIT, TRANSFER = (str(Path(PROGRAM).with_name(name)) for name in ("get_ties_jobs", "submit_ties_jobs", "transfer_ties_jobs"))
HELD_JOB = "echo run >>runs.log\nwhile [ ! -e go ]; do sleep 0.1; done\ncat in.txt >out.txt\n"
# What a program of the older protocol does, many times, as www-data on vision: $1 and every fourth number after it, up to $2.
WRITER = """cd compties/scripts; n=$1
while [ $n -lt $2 ]; do
    d=../user_data/u$((n % 7))/E$n; mkdir -p $d; : >$d/.request; mv $d/.request $d/PENDING
    (flock 9; echo u$((n % 7))/E$n >>relay.names; flock -s -n relay.pid true || kill -30 "$(cat relay.pid)") 9>>relay.lock
    n=$((n + 4))
done"""


@pytest.fixture
def site(lab):
    return LabSite(lab, compute=("b01",))


class Pipeline:
    """A pipeline of shell text, as webapp's on v11; what it says goes to files in webapp's home."""

    def __init__(self, site, text):
        self.site, self.out, self.err = site, site.base / "pipe.out", site.base / "pipe.err"
        for path in self.out, self.err:
            path.unlink(missing_ok=True)
        with open(self.out, "wb") as out, open(self.err, "wb") as err:
            self.process = site.lab.start_on("v11", ["sh", "-c", text], user="webapp", stdout=out, stderr=err)

    def lines(self):
        return self.out.read_text().splitlines()

    def until(self, what, condition, seconds=60):
        try:
            return wait_for(condition, seconds)
        except AssertionError:
            raise AssertionError(f"{what}: {self.out.read_text()[-2000:]}\n{self.err.read_text()[-2000:]}\n{self.site.said()}") from None


@contextlib.contextmanager
def pipeline(site, text):
    pipe = Pipeline(site, text)
    try:
        yield pipe
    finally:
        for name in GET, SUBMIT, TRANSFER:
            for pid in pids(site.lab, "v11", name):
                site.lab.on("v11", ["kill", pid], check=False)
        pipe.process.wait(60)


def pids(lab, host, words, user="webapp"):
    """Return the processes of a user on a host whose command line has these words."""
    rows = [line.split(None, 2) for line in lab.on(host, ["ps", "-e", "-ww", "-o", "pid=,user:20=,args="]).stdout.splitlines()]
    return [row[0] for row in rows if row[1] == user and words in row[2]]


def one_alone(lab, words):
    """Return the process on v11 that these words began, "" if it is not just one; the shell that has begun it does not count."""
    found = set(pids(lab, "v11", words)) - set(pids(lab, "v11", "sh -c"))
    return found.pop() if len(found) == 1 else ""


def relay_of(lab):
    """Return the relays that run as www-data on vision."""
    return pids(lab, "vision", "python3 scripts/relay.py", "www-data")


def relay_is_up(site):
    """Wait until the relay on vision has put up its process id and holds its lock."""
    asked = ["sh", "-c", "cd compties/scripts && [ -s relay.pid ] && ! flock -s -n relay.pid true"]
    wait_for(lambda: site.lab.on("vision", asked, user="www-data", check=False).returncode == 0, 30, 0.1)


def test_get_and_submit_are_a_pipeline_and_the_relay_ends_with_its_reader(site):
    job, later = "ann/it's here", "bob b/comes later"
    site.drop(job, HELD_JOB)
    put(site.web / "eve/asked for nothing/in.txt")
    give(site.web / "eve", "www-data")
    with pipeline(site, f"{GET} vision | tee names | {SUBMIT}") as pipe:
        pipe.until("submitted", lambda: f"{job}: SUBMITTED, attempt 1 on b01" in pipe.out.read_text())
        relay_is_up(site)
        site.drop(later, HELD_JOB)
        pipe.until("submitted", lambda: f"{later}: SUBMITTED, attempt 1 on b01" in pipe.out.read_text())
        assert [site.marker(j)[0] for j in (job, later)] == ["SUBMITTED", "SUBMITTED"]
        assert len(relay_of(site.lab)) == 1
        submit, tee = (pipe.until(words, lambda: one_alone(site.lab, words)) for words in (SUBMIT, "tee names"))
        began = time.monotonic()
        site.lab.on("v11", ["kill", "-9", submit, tee])
        wait_for(lambda: not relay_of(site.lab), 10)
        print(f"the relay ended {time.monotonic() - began:.1f} s after its reader")
        pipe.until("get_ties_jobs ends", lambda: not pids(site.lab, "v11", GET), 10)
    assert (site.base / "names").read_text().splitlines() == [job, later]
    for each in job, later:
        site.wait(lambda: site.runs(each) == 1, 30, "it runs")
        (site.compute / each / "go").touch()
        wait_for(lambda: (site.compute / each / "DONE").exists(), 30)
    names = f"{job}\n{later}\n{job}\nno/such\nnot-a-job\neve/asked for nothing"
    done = site.lab.on("v11", [SUBMIT], user="webapp", input=names, check=False)
    assert done.returncode == 1 and done.stdout == "".join(f"{j}: SUBMITTED, attempt 1 on b01\n" for j in (job, later)), done
    assert "watchties: no/such: no PENDING stands for it, on vision or in the mirror\n" in done.stderr
    assert "watchties: not-a-job: not-a-job: not 2 directories deep" in done.stderr and done.stderr.count("\n") == 3
    waits = site.watchties("status", later).stdout
    assert "poll is left to the next pass" in waits and "is asked how it stands" not in waits, waits
    assert "2 DONE" in site.watchties("transfer").stdout and [site.runs(j) for j in (job, later)] == [1, 1]


def test_a_thousand_designated_names_come_each_once_and_bad_ones_are_told(site):
    scripts, lab = site.web.parent / "scripts", site.lab
    with pipeline(site, f"{GET} vision") as pipe:
        relay_is_up(site)
        writers = [lab.start_on("vision", ["sh", "-c", WRITER, "sh", str(n), "1000"], user="www-data") for n in range(4)]
        burst = 'cd compties/scripts; for _ in $(seq 200); do kill -30 "$(cat relay.pid)"; done'
        lab.on("vision", ["sh", "-c", burst], user="www-data")
        bad = "no/such\\nhalf a li"
        lab.on("vision", ["sh", "-c", f"cd compties/scripts; (flock 9; printf '{bad}' >>relay.names) 9>>relay.lock"], user="www-data")
        assert [writer.wait(120) for writer in writers] == [0] * 4
        pipe.until("all names", lambda: len(set(pipe.lines())) >= 1000, 60)
        wait_for(lambda: not (scripts / "relay.names").exists() and not (scripts / ".relay.names.taken").exists(), 60)
        pipe.until("bad ones", lambda: "no/such" in pipe.err.read_text() and "half a li" in pipe.err.read_text(), 30)
        heard = Counter(pipe.lines())
    wanted = {f"u{n % 7}/E{n}" for n in range(1000)}  # the one whose name was joined to the half line has its PENDING all the same
    assert set(heard) == wanted and set(heard.values()) == {1}


def test_a_pass_for_each_name_brings_the_results_back_and_leaves_names_to_a_daemon(lab):
    first, second, third = "ann/first", "bob/second 'one'", "eve/third"
    site = LabSite(lab, compute=("b01",), host='poll = "1s"')
    with pipeline(site, f"{GET} vision | {TRANSFER} -") as pipe:
        site.drop(first, HELD_JOB)
        pipe.until("submitted", lambda: f"{first}: SUBMITTED" in pipe.out.read_text())
        site.drop(second)
        pipe.until("the second overtakes", lambda: site.marker(second)[0] == "DONE")
        (site.compute / first / "go").touch()
        pipe.until("the first is brought back", lambda: site.marker(first)[0] == "DONE")
        wait_for(lambda: site.letter(first) and site.letter(second), 30)
        for job in first, second:
            assert site.runs(job) == 1 and (site.web / job / "out.txt").read_text() == f"input of {job}\n"
        with site:
            site.wait_ready()
            site.drop(third)
            site.wait_state(third, "DONE")
            pipe.until("left to the daemon", lambda: f"{third}: left to the daemon that is at work" in pipe.out.read_text())
            beside = lab.on("v11", [SUBMIT], user="webapp", input=f"{third}\n")
            assert f"{third}: left to the daemon that is at work (pid {site.pid()})" in beside.stdout and not beside.stderr
        assert site.runs(third) == 1
        assert not pipe.err.read_text(), pipe.err.read_text()


def test_what_cannot_be_is_said_in_one_line(site):
    lab = site.lab
    for words, said in ([GET, "b01"], "b01 is no web host; there are: vision"), ([GET, "visoin"], "visoin is no web host"):
        done = lab.on("v11", words, user="webapp", check=False)
        assert done.returncode == 2 and said in done.stderr and done.stderr.count("\n") == 1
    lab.fault("reject", "vision")
    try:
        done = lab.on("v11", [GET, "vision"], user="webapp", check=False)
    finally:
        lab.fault("clear", "vision")
    assert done.returncode == 1 and "refused" in done.stderr and done.stderr.count("\n") == 1
    alone = lab.on("v11", ["sh", "-c", f"mkdir -p tree/ann/E1 relay && : >tree/ann/E1/PENDING && exec timeout -s INT 20 {relay_words()}"],
                   user="webapp", check=False)  # fmt: skip
    assert alone.stdout == "ann/E1\n", alone


def relay_words():
    """Return the relay as a command of v11, ended by its reader after a line."""
    program = Path(PROGRAM).with_name("relay_ties_directories")
    return f"sh -c '{program} --tree tree --directory relay | head -n 1'"


def test_its_own_older_name_on_the_web_host_serves_without_options(site):
    argv = ["sh", "-c", "exec python3 compties/scripts/relay_ties_directories"]
    site.drop("ann/E1")
    process = site.lab.start_on("vision", argv, user="www-data", stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout.readline() == "ann/E1\n"
    finally:
        process.stdout.close()
        assert process.wait(20) == 0
    assert os.path.getsize(site.web.parent / "scripts/relay.pid") == 0

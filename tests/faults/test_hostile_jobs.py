"""Thousands of hostile jobs beside good ones, with the real daemon: each harms itself only, nothing escapes, the daemon lives."""

import email
import email.policy
import os
import random
import re
import sqlite3

import pytest
from helpers import put
from hostile_kit import Outside, clean_words, file_name, nasty, spoilt
from site_kit import Site
from watchties.errors import BadJobName
from watchties.model import MARKERS, check_job_name

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="devices are made by root only")
GOOD = [f"good/Exp {n}" for n in range(10)]
RUN = "echo run >>runs.log\n"
COPIES = RUN + 'mkdir out; for f in ./*; do [ ! -f "$f" ] || cp -- "$f" out/; done\n'


@pytest.fixture
def scene(tmp_path, long, seed):
    """Return (site, draw, how many, outside); what must hold after every test is looked at in the end."""
    outside = Outside(tmp_path)
    site = Site(tmp_path, max_running=30)
    with site:
        site.wait_ready()
        yield site, random.Random(seed), 2000 if long else 60, outside
        assert site.process.poll() is None, site.said()
        for job in GOOD:
            assert site.marker(job)[0] == "DONE" and site.runs(job) == 1, (job, site.marker(job), site.said())
        assert not clean_words(site) and not raw_html(site)
        assert not outside.escapes(site.web, site.mirror, site.compute, site.mail)


def raw_html(site):
    """Return the mails in which a name has become markup."""
    parts = [email.message_from_string(text, policy=email.policy.default).get_body(("html",)) for text in site.letters()]
    return [text for part in parts if part and re.search('<script>|"><b>', text := part.get_content())]


def lay(site, job, command=RUN, texts=()):
    """Write a job on the web host; texts: name -> content. Names may be any that the disk takes."""
    where = os.path.join(site.web, job)
    os.makedirs(where, exist_ok=True)
    for name, content in {"command": command, **dict(texts)}.items():
        with open(os.path.join(where, name), "wb") as file:
            file.write(content.encode("utf-8", "surrogateescape") if isinstance(content, str) else content)
    return where


def ask(where):
    with open(os.path.join(where, ".request"), "w"):
        pass
    os.rename(os.path.join(where, ".request"), os.path.join(where, "PENDING"))


def among(good, jobs):
    """Yield the jobs, and a good one now and then."""
    step = max(1, len(jobs) // len(good))
    for number, job in enumerate(jobs):
        if number % step == 0 and number // step < len(good):
            yield good[number // step], True
        yield job, False


def ends(site, jobs):
    """Wait until all jobs have ended, for as long as some do; return job -> (state, fields)."""
    left, ended = set(jobs), {}
    while left:
        before = len(left)
        site.wait(
            lambda: any(site.marker(job)[0] in ("DONE", "FAILED") for job in left),
            120,
            f"{len(left)} of {len(jobs)}, {sorted(left)[:3]!r}",
        )  # noqa: B023
        ended |= {job: site.marker(job) for job in left if site.marker(job)[0] in ("DONE", "FAILED")}
        left -= ended.keys()
        assert len(left) < before
    site.wait(site.quiet, 120, "quiet")
    return ended


def in_one_line(fields):
    assert fields["cause"] in ("rejected", "exit", "cancelled") and fields["reason"].isprintable(), fields


def takes(job):
    try:
        return bool(check_job_name(job))
    except BadJobName:
        return False


def test_names_of_jobs(scene, figure):
    site, draw, count, _ = scene
    jobs = {}
    while len(jobs) < count:
        job = f"{file_name(draw) if draw.random() < 0.5 else 'ann'}/{file_name(draw)}"
        jobs[job] = takes(job)
    for job, good in among(GOOD, list(jobs)):
        site.drop(job) if good else ask(lay(site, job))
    ended = ends(site, [*GOOD, *(job for job, taken in jobs.items() if taken)])
    assert {state for state, _ in ended.values()} == {"DONE"} and {site.runs(job) for job in ended} == {1}
    for job in (job for job, taken in jobs.items() if not taken):
        assert not os.path.exists(os.path.join(site.mirror, job)) and not os.path.exists(os.path.join(site.compute, job)), repr(job)
    db = sqlite3.connect(f"file:{site.state}/journal.sqlite?mode=ro", uri=True)
    rows = db.execute("SELECT name, reason FROM refused").fetchall()
    db.close()
    assert rows and all(word.isprintable() for row in rows for word in row), rows
    taken = sum(jobs.values())
    figure(f"{count} names of jobs: {taken} DONE, {count - taken} refused, {len(GOOD)} good ones beside them DONE, 0 escapes")


def test_names_of_files(scene, figure):
    site, draw, count, _ = scene
    jobs = [f"ann/E{n}" for n in range(max(1, count // 100))]
    names = {
        job: {file_name(draw) for _ in range(count // len(jobs))} - {"command", "out", "runs.log", "job.toml", "CPU_SERVER"}
        for job in jobs
    }
    for job, good in among(GOOD, jobs * 10):  # for a good one between each two
        if good:
            site.drop(job)
        elif not os.path.exists(site.web / job):
            ask(lay(site, job, COPIES, dict.fromkeys(names[job], "x") | {"command": COPIES}))
    for job in GOOD:
        if not (site.web / job).exists():
            site.drop(job)
    ended = ends(site, [*GOOD, *jobs])
    assert {state for state, _ in ended.values()} == {"DONE"}, ended
    for job in jobs:
        plain = {os.fsencode(name) for name in names[job] if not name.startswith(".") and name not in MARKERS}
        made = set(os.listdir(os.fsencode(site.web / job / "out"))) - {b"command", b"runs.log", b"in.txt"}
        made -= {name for name in made if name.startswith(b"remote_ties_run.")}
        assert made == plain, (sorted(made ^ plain)[:5],)
    figure(f"{sum(map(len, names.values()))} names of files in {len(jobs)} jobs: there and back, 0 escapes")


TOML = ["cores = {}\n", 'queue = "{}"\n', "queue = '''{}'''\n", 'memory = "{}"\nwalltime = "{}"\n', "[{}]\n", "{}", "cores = 2\n"]


@pytest.mark.parametrize("name", ["job.toml", "CPU_SERVER"])
def test_files_that_say_what_a_job_wants(name, scene, figure):
    site, draw, count, outside = scene
    jobs = [f"ann/E{n}" for n in range(count)]
    for job, good in among(GOOD, jobs):
        if good:
            site.drop(job)
            continue
        text = nasty(draw) if name == "CPU_SERVER" else spoilt(draw, draw.choice(TOML).replace("{}", nasty(draw)))
        where, kind = lay(site, job, texts={name: text}), draw.random()
        if kind < 0.2:
            os.unlink(os.path.join(where, name))
            other(draw, os.path.join(where, name), outside)
        ask(where)
    ended = ends(site, [*GOOD, *jobs])
    bad = [fields for state, fields in ended.values() if state == "FAILED"]
    for fields in bad:
        in_one_line(fields)
    assert all(site.runs(job) == (state == "DONE") for job, (state, _) in ended.items())
    figure(
        f"{count} {name}: {count - len(bad)} DONE, {len(bad)} rejected in one line, {len(GOOD)} good ones beside them DONE, 0 escapes"
    )


def other(draw, path, outside):
    """Make something that is no plain, small file; return what."""
    kind = draw.choice(["directory", "pipe", "link", "loop", "dangling", "device", "huge"])
    if kind == "directory":
        put(os.path.join(path, "x"), "x") if hasattr(path, "parent") else (
            os.makedirs(path),
            open(os.path.join(path, "x"), "w").close(),
        )
    elif kind == "pipe":
        os.mkfifo(path)
    elif kind == "link":
        os.symlink(outside.dir / "e1/DONE", path)
    elif kind == "loop":
        os.symlink(os.path.basename(path), path)
    elif kind == "dangling":
        os.symlink(outside.dir / "not-there", path)
    elif kind == "device":
        os.mknod(path, 0o020666, os.makedev(1, 5))  # /dev/zero
    else:
        with open(path, "wb") as file:
            file.truncate(1 << 28)
    return kind


HIDDEN = [".watchties.new.DONE", ".watchties.new.SUBMITTED", ".watchties.taken.CANCEL", ".watchties", ".watchties.partial", ".watchties.open",
          ".watchties.junk.DONE.0"]  # fmt: skip


def test_markers(scene, figure):
    site, draw, count, outside = scene
    asked, idle = [], []
    for job, good in among(GOOD, [f"ann/E{n}" for n in range(count)]):
        if good:
            site.drop(job)
            continue
        where = lay(site, job)
        for name in (*MARKERS[1:], *HIDDEN):
            path = os.path.join(where, name)
            if (kind := draw.random()) < 0.15:
                other(draw, path, outside)
            elif kind < 0.3 and name != "CANCEL" and not name.endswith(".CANCEL"):
                put(path, spoilt(draw, f"state={name}\nattempt=1\ntoken={nasty(draw)}\n").encode("utf-8", "surrogateescape"))
        if draw.random() < 0.8:
            ask(where)
            asked.append(job)
            if draw.random() < 0.3:
                with open(os.path.join(where, "PENDING"), "r+b") as file:
                    file.truncate(draw.choice([1, 1 << 20, 1 << 30]))
        else:
            kind = other(draw, os.path.join(where, "PENDING"), outside)
            (asked if kind == "huge" else idle).append(job)
    ended = ends(site, [*GOOD, *asked])
    for job, (state, fields) in ended.items():
        assert state == "DONE" or in_one_line(fields) is None
        assert site.runs(job) == (state == "DONE"), (job, state, fields)
        stands = {name for name in MARKERS if os.path.isfile(site.web / job / name) and not os.path.islink(site.web / job / name)}
        assert stands - {"CANCEL"} == {state}, (job, stands)
    assert not [job for job in idle if site.runs(job)]
    cancelled = sum(state == "FAILED" for state, _ in ended.values())
    figure(
        f"{count} jobs with markers: {len(asked) - cancelled} DONE once, {cancelled} cancelled, {len(idle)} never asked for, 0 escapes"
    )

"""A symbolic link at every place of every tree, and directories that flip into links meanwhile."""

import os
import random
import shutil
import tempfile
import time
from pathlib import Path

import pytest
from helpers import put
from hostile_kit import Outside, Swapper, clean_words
from site_kit import Site

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="as root the danger is largest")
HOLD = "echo run >>runs.log; for _ in $(seq 1200); do [ -e go ] && break; sleep 0.05; done\n"
MAKES = "echo run >>runs.log; rm -rf plots out.txt; mkdir plots; echo x >plots/x; echo x >out.txt\n"  # a job's command itself may do anything

WEB = ["PENDING", "CANCEL", "SUBMITTED", "DONE", "FAILED", "command", "in.txt", "job.toml", "CPU_SERVER", "remote_ties_run.res", "remote_ties_run.err",
       "out.txt", "plots", "plots/x", ".watchties", ".watchties.partial", "data/.watchties.partial", ".watchties.new.SUBMITTED", ".watchties.new.DONE",
       ".watchties.taken.PENDING", ".watchties.taken.CANCEL", ".in.txt.AbCdEf", "email"]  # fmt: skip
MIRROR = ["SUBMITTED", "DONE", "FAILED", "CANCEL", "command", "in.txt", "job.toml", "out.txt", "plots", "plots/x", "remote_ties_run.err",
          ".watchties", ".watchties/record.json", ".watchties/record.json.new", ".watchties/manifest.1", ".watchties/manifest.1.new",
          ".watchties/made.1", ".watchties/spared.1.new", ".watchties/sending.1", ".watchties.open", ".watchties.new.SUBMITTED", ".watchties.new.PENDING",
          ".watchties.new.DONE", ".watchties.taken.PENDING", ".watchties.partial", "data/.watchties.partial"]  # fmt: skip
COMPUTE = ["SUBMITTED", "DONE", "FAILED", "command", "in.txt", "out.txt", "plots", "plots/x", "remote_ties_run.err", "remote_ties_run.res", ".watchties",
           ".watchties.partial", "data/.watchties.partial", ".watchties.new.DONE", ".watchties.new.FAILED"]  # fmt: skip
RUNNING = ["DONE", "out.txt", "plots", "remote_ties_run.err", ".watchties.new.DONE", ".watchties/{a}/exit", ".watchties/{a}/killed", ".watchties/{a}/begun",
           ".watchties/{a}/reply", "plots/.watchties.partial"]  # fmt: skip


def link(path, target):
    """Lay a link, over what is there."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    path.unlink(missing_ok=True)
    path.symlink_to(target)


def targets(outside, name):
    """Return where a link at a place may lead: to a file, to a directory, to what is not there yet."""
    return [outside.dir / "secret", outside.dir / "e1", outside.dir / f"made-by-{name.replace('/', '-')}"]


def write(site, job, command=HOLD):
    for name, text in {"command": command, "in.txt": "x\n", "data/in.txt": "x\n"}.items():
        put(site.web / job / name, text)


def test_a_link_at_every_place_leads_nowhere(tmp_path, long, seed, figure):
    draw, outside, places = random.Random(seed), Outside(tmp_path), 0
    site, good, running = (
        Site(tmp_path, max_running=200, daemon='grace = "2s"\nreconcile = "5s"'),
        [f"good/E{n}" for n in range(5)],
        {},
    )
    chosen = lambda name: targets(outside, name) if long else [draw.choice(targets(outside, name))]  # noqa: E731
    for tree, user, names in (site.web, "web", WEB), (site.mirror, "mirror", MIRROR), (site.compute, "compute", COMPUTE):
        for name in names:
            for target in chosen(name):
                job, places = f"{user}/E{places}", places + 1
                write(site, job, MAKES)
                if name != "PENDING":
                    site.touch(job)
                link(tree / job / name, target)
    for tree in site.web, site.mirror, site.compute:  # a user, a job
        for target in outside.dir, outside.dir / "e1", outside.dir / "not-there":
            for name in f"user{places}", f"ann/E{places}":
                places += 1
                if tree != site.web:
                    write(site, f"{name}/e1" if "/" not in name else name)
                    site.touch(f"{name}/e1" if "/" not in name else name)
                link(tree / name, target)
    for number, name in enumerate(RUNNING):
        for target in chosen(name):
            job = f"late/E{number}-{target.name}"
            write(site, job)
            running[job] = name, target
    with site:
        for job in [*running, *good]:
            site.drop(job) if job in good else site.touch(job)
        for job, (name, target) in running.items():
            site.wait(lambda: site.runs(job) == 1, 120, f"{job} runs")  # noqa: B023
            attempt = next(path.name for path in (site.compute / job / ".watchties").iterdir() if path.name.startswith("1."))
            link(site.compute / job / name.format(a=attempt), target)
            put(site.compute / job / "go")
            places += 1
        for job in good:
            site.wait_state(job, "DONE", 240)
        site.wait(lambda: settled(site), 120, "the rest has ended, or waits")
        for job in good:  # asked for again, and now everything that was laid is met a second time
            site.touch(job)
        site.wait(lambda: all(site.runs(job) == 2 and site.marker(job)[0] == "DONE" for job in good), 240, "again")
        assert not outside.escapes(site.web, site.mirror, site.compute, site.mail)
        assert not clean_words(site)
        ended = sum(state(site, job) in ("DONE", "FAILED") for job in all_jobs(site))
    figure(
        f"links at {places} places of three trees: 0 escapes; {ended} of {len(all_jobs(site))} jobs ended, the others say what is in their way"
    )


def all_jobs(site):
    return [f"{user.name}/{job.name}" for user in site.web.iterdir() if user.is_dir() and not user.is_symlink()
            for job in user.iterdir() if job.is_dir() and not job.is_symlink()]  # fmt: skip


def settled(site):
    """Return whether nothing has changed for a while: what has not ended waits for somebody to take a link away."""
    before = {job: state(site, job) for job in all_jobs(site)}
    time.sleep(5)
    return before == {job: state(site, job) for job in all_jobs(site)}


def state(site, job):
    """Return the name of the marker that stands on the web host, no link taken for one."""
    paths = [site.web / job / name for name in ("PENDING", "SUBMITTED", "FAILED", "DONE")]
    return next((path.name for path in paths if path.is_file() and not path.is_symlink()), "")


# ---- a directory that is a link in the next moment ----


@pytest.fixture
def wide():
    """Return a directory that other users may enter."""
    where = Path(tempfile.mkdtemp(prefix="watchties-"))
    where.chmod(0o755)
    yield where
    shutil.rmtree(where)


WWW, OTHER = 33, 65534  # www-data and nobody, as which the two hosts work; the daemon is root


def give(path, uid):
    for each in [path, *path.rglob("*")]:
        os.chown(each, uid, uid, follow_symlinks=False)


def test_directories_that_flip_into_links_lead_nowhere(wide, long, seed, figure):
    """The owner of a tree on a host exchanges users and jobs with links to what root alone may read, while jobs go through."""
    draw, outside, rounds = random.Random(seed), Outside(wide), 60 if long else 3
    hosts = lambda text: text.replace('role = "web"', 'role = "web"\nbecome = "www-data"').replace(
        'role = "compute"', 'role = "compute"\nbecome = "nobody"'
    )  # noqa: E731
    site = Site(wide, change=hosts, daemon='grace = "2s"\nreconcile = "2s"')
    outside.dir.chmod(0o700)
    outside.before = outside.seen()
    for tree, uid in (site.web, WWW), (site.compute, OTHER):
        give(tree.parent, uid)
    jobs = [f"ann/e{n}" for n in range(4)]
    good, flips = [f"good/E{n}" for n in range(rounds)], 0
    for job in [*jobs, "eve/e1"]:
        write(site, job, "echo run >>runs.log; mkdir -p plots; cat in.txt >plots/x; cat in.txt >out.txt\n")
    for target, name in (outside.dir, "eve-link"), (outside.dir / "e1", "e-link"):
        for tree in site.web, site.compute:
            for n in range(len(jobs)):
                (tree / f".{name}{n}").symlink_to(target)
    give(site.web, WWW)
    give(site.compute, OTHER)
    with site:
        site.wait_ready()
        for job in [*jobs, "eve/e1"]:
            asked(site, job)
        for job in jobs:
            site.wait_state(job, "DONE", 120)
        pairs = {
            tree: [(tree / job, tree / f".e-link{n}") for n, job in enumerate(jobs)] + [(tree / "eve", tree / ".eve-link0")]
            for tree in (site.web, site.compute)
        }
        for job in good:
            with Swapper(pairs[site.web], WWW) as one, Swapper(pairs[site.compute], OTHER) as two:
                for hostile in draw.sample(jobs, 2):
                    asked(site, hostile)
                write(site, job, "echo run >>runs.log; cat in.txt >out.txt\n")
                give(site.web / "good", WWW)
                asked(site, job)
                site.wait_state(job, "DONE", 120)
                flips += one.flips.value + two.flips.value
        assert all(site.runs(job) == 1 for job in good)
        assert flips > 100 * rounds, "the swapper does not swap"
        site.wait(
            lambda: all(site.marker(job)[0] in ("DONE", "FAILED") and not (site.web / job / "PENDING").exists() for job in jobs),
            180,
            "the flipped ones end",
        )
        assert not outside.escapes(site.web, site.mirror, site.compute, site.mail)
        assert not clean_words(site)
    figure(f"{flips} flips of a directory into a link and back, {len(good)} good jobs beside them DONE once: 0 escapes")


def asked(site, job):
    """Make a request appear as the tree's owner does; a job that is a link in this moment is asked for a moment later."""
    for _ in range(20000):
        time.sleep(0.001)
        where = site.web / job
        try:
            if where.is_symlink() or where.parent.is_symlink():
                continue
            fd = os.open(where, os.O_DIRECTORY | os.O_NOFOLLOW)
        except OSError:
            continue
        try:
            os.close(os.open(".request", os.O_CREAT | os.O_WRONLY | os.O_NOFOLLOW, 0o644, dir_fd=fd))
            os.chown(".request", WWW, WWW, dir_fd=fd, follow_symlinks=False)
            os.rename(".request", "PENDING", src_dir_fd=fd, dst_dir_fd=fd)
            return
        except OSError:
            continue
        finally:
            os.close(fd)
    raise AssertionError(f"{job} is always a link")

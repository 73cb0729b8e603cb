"""The same over real hosts, with an ordinary user's daemon: who owns a far tree gets nothing of the submission host."""

import os
import random

import pytest
from hostile_kit import Outside, Swapper, clean_words, file_name
from lab_kit import USERS, Lab, LabSite, give, why_not
from trouble_kit import quick

QUICK = quick("pull", "submit", "report", "fetch", "push", "poll")
HERE = "/home/webapp/outside"  # as it is called on the submission host: what its own user may read and write
LAYS = f"""echo run >>runs.log
n=$(wc -l <runs.log)
for d in a a/b; do
    rm -rf $d/plots $d/.watchties.partial; mkdir -p $d
    [ $((n % 2)) = 0 ] || {{ ln -s {HERE} $d/plots; ln -s {HERE} $d/.watchties.partial; ln -s ../../../outside $d/other; }}
    [ $((n % 2)) = 1 ] || {{ rm -f $d/other; mkdir $d/plots $d/other; for f in id secret record.json x; do echo mine >$d/$f; echo mine >$d/plots/$f; echo mine >$d/other/$f; done; }}
done
rm -f link key; ln -s {HERE}/secret link; ln -s /home/webapp/.ssh/id_ed25519 key
"""


@pytest.fixture(scope="module")
def hosts(tmp_path_factory):
    if reason := why_not():
        pytest.skip(reason)
    with Lab(tmp_path_factory.mktemp("lab"), hosts=("vision", "v11", "b01")) as up:
        yield up


def keys(lab):
    """Return what stands in the ssh directories of all users of all hosts."""
    found = [path for host in lab.hosts for path in (lab.folder / host).rglob(".ssh/*") if path.is_file()]
    return {str(path): (path.read_bytes(), path.lstat().st_mtime_ns) for path in found}


def test_the_owner_of_a_far_tree_gets_nothing_of_the_submission_host(hosts, long, seed, figure):
    draw, rounds = random.Random(seed), 30 if long else 3
    outside = [Outside(hosts.home("v11", "webapp")), Outside(hosts.home("vision", "root")), Outside(hosts.home("b01", "root"))]
    give(outside[0].dir, "webapp")
    for one in outside:
        one.dir.chmod(0o700)
        one.before = one.seen()
    before, flips = keys(hosts), 0
    with LabSite(hosts, compute=("b01",), edit=QUICK, daemon='grace = "2s"\nreconcile = "5s"') as site:
        site.wait_ready()
        trees = {site.web: "www-data", site.compute: "runcompties"}
        jobs = ["eve/lays", "eve/flips", "mal/flips"]
        for job in jobs:
            odd = {name: "odd" for name in {file_name(draw) for _ in range(20)} - {"command", "in.txt"}}
            site.drop(job, LAYS, files={name: "odd" for name in odd if not os.path.lexists(os.path.join(site.web, job, name))})
        for job in jobs:
            site.wait_state(job, "DONE", 240)
        pairs = {}
        for tree, user in trees.items():
            for name, target in (".link", "/root/outside"), (".user", "/root/outside"), (".home", "/home/webapp/outside/e1"):
                (tree / name).symlink_to(target)
                os.lchown(tree / name, USERS[user], USERS[user])
            pairs[tree] = [(tree / "eve/flips", tree / ".link"), (tree / "mal", tree / ".user")]
        good = [f"good/E{n}" for n in range(rounds)]
        for number, job in enumerate(good):
            for hostile in jobs[:1] if number % 2 else jobs[1:2]:
                site.touch(hostile)
            with Swapper(pairs[site.web]) as one, Swapper(pairs[site.compute]) as two:
                site.drop(job)
                site.wait_state(job, "DONE", 240)
                flips += one.flips.value + two.flips.value
            if number % 2:  # two attempts of the one that lays links for its next
                site.wait(
                    lambda: site.marker("eve/lays")[0] in ("DONE", "FAILED") and not (site.web / "eve/lays/PENDING").exists(), 240, "laid"
                )
        assert all(site.runs(job) == 1 for job in good)
        site.wait(
            lambda: all(site.marker(job)[0] in ("DONE", "FAILED") and not (site.web / job / "PENDING").exists() for job in jobs),
            240,
            "they end",
        )
        assert site.process.poll() is None and not clean_words(site)
        assert not [wrong for one in outside for wrong in one.escapes(site.mirror, site.mail, site.web, site.compute)]
        assert keys(hosts) == before
    figure(
        f"an ordinary user's daemon over ssh, {flips} flips, {len(good)} good jobs DONE once: 0 escapes, no key or file of its own read or touched"
    )

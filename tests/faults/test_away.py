"""A tree that is renamed away and back, or unmounted and mounted again, its mount point standing empty meanwhile.

The way in which a job would run twice: its PENDING, long accepted, still stands on the web host (or a backup has put it back), it is
announced while the mirror is away, and whoever takes the empty mount point for the mirror finds no record of it.
"""

import os
import random

import pytest
from helpers import put
from resources_kit import Place, job_names, own_mounts  # noqa: F401
from trouble_kit import HOLD, quick

WAYS = ("unmounted", "renamed away", "replaced by an empty one")
PLACES = ("mirror", "web", "compute")
RULES = ("pull", "submit", "report", "fetch", "push", "mail", "cancel", "poll")


class Away:
    """A tree that goes away, and comes back."""

    def __init__(self, site, place, way):
        self.tree, self.disk, self.way = getattr(site, place), site.disks.get(place), way
        self.aside = self.tree.with_name("aside")

    def go(self):
        if self.way == "unmounted":
            self.disk.unplug()
        else:
            self.tree.rename(self.aside)
        if self.way.startswith("replaced"):
            self.tree.mkdir()

    def come(self):
        """Bring it back; return what was made below the place where it is."""
        made = sorted(str(p) for p in self.tree.rglob("*")) if self.tree.exists() else []
        if self.way == "unmounted":
            self.disk.plug()
            return made
        if self.tree.exists():
            self.tree.rename(self.tree.with_name(f"made.{self.way.split()[0]}"))
        self.aside.rename(self.tree)
        return made


def put_back(site, job, accepted):
    """Have the PENDING that was accepted stand on the web host again, as a backup would."""
    ns, hidden = int(accepted[0].rpartition(":")[2]), site.web / job / ".request"
    hidden.write_text("")
    os.utime(hidden, ns=(ns, ns))
    hidden.rename(site.web / job / "PENDING")


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.slow
def test_a_tree_that_is_away_is_waited_for(place, tmp_path, own_mounts, seed, long, figure):  # noqa: F811
    draw, count = random.Random(seed), 30 if long else 4
    ways = WAYS if long else [WAYS[(seed + PLACES.index(place)) % len(WAYS)]]
    for way in ways:
        base = tmp_path / way.split()[0]
        base.mkdir()
        with Place(base, edit=quick(*RULES), disks=[place] if way == "unmounted" else []) as site:
            site.wait_ready()
            ended, running, during = (job_names(count, what) for what in ("ended", "running", "during"))
            for job in ended:
                site.drop(job)
            site.all_end(ended)
            for job in running:
                site.drop(job, command=HOLD)
            site.wait(lambda: all(site.runs(job) == 1 and site.marker(job)[0] == "SUBMITTED" for job in running), 60, "they run")
            accepted = {job: site.record(job).accepted for job in (*ended, *running)}
            if draw.random() < 0.5:
                for job in running[: count // 2]:
                    put(site.compute / job / "go")  # they end while it goes
            gone = Away(site, place, way)
            gone.go()
            if place != "web":
                for job in during:
                    site.drop(job)
            if place == "mirror":
                for job in (*ended, *running):
                    put_back(site, job, accepted[job])
            if place != "compute":
                for job in running:
                    put(site.compute / job / "go")
            tree = getattr(site, place)
            print(site.says(str(tree)))
            if draw.random() < 0.5:
                site.kill()
                site.start()
                print(site.says(str(tree)))
            made = gone.come()
            if place == "web":
                for job in during:
                    site.drop(job)
            for job in running:
                put(site.compute / job / "go")
            site.all_end([*ended, *running, *during])
            assert not made, made
            site.told_once()
            assert site.stop() == 0
        figure(f"{place}, {way}: {3 * count} jobs, 0 lost, 0 twice")

"""Disks that are full, without inodes, read-only, on each machine: said in one line, told once, and it goes on by itself."""

import random

import pytest
from helpers import put
from resources_kit import Place, job_names, own_mounts  # noqa: F401
from trouble_kit import HOLD, floor, quick

TROUBLES = ("full", "no_inodes", "read_only")
PLACES = ("web", "mirror", "state", "compute")
RULES = ("pull", "submit", "report", "fetch", "push", "mail")
SAYS = {  # the words of one line of status: what, where
    ("mirror", "full"): ("{mirror}", "make room"), ("mirror", "no_inodes"): ("{mirror}", "remove files"),
    ("mirror", "read_only"): ("{mirror}", "read-only"),
    ("state", "full"): ("{state}", "make room"), ("state", "no_inodes"): ("{state}", "remove files"), ("state", "read_only"): ("{state}", "read-only"),
}  # fmt: skip


def troubles_of(place, seed, long):
    """Return the troubles that a place gets into: all of them, or one."""
    return TROUBLES if long else [TROUBLES[(seed + PLACES.index(place)) % len(TROUBLES)]]


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.slow
def test_a_disk_in_trouble_delays_and_loses_nothing(place, tmp_path, own_mounts, seed, long, figure):  # noqa: F811
    draw, count = random.Random(seed), 40 if long else 6
    for trouble in troubles_of(place, seed, long):
        base = tmp_path / trouble
        base.mkdir()
        sizes = {"size": "48m", "inodes": 4000}
        with Place(base, edit=quick(*RULES), change=floor("1MB"), disks=[place], sizes=sizes) as site:
            site.wait_ready()
            before, during = job_names(count, "before"), job_names(count, "during")
            held = [job for job in before if draw.random() < 0.5]
            for job in before:
                site.drop(job, **({"command": HOLD} if job in held else {}))
            site.wait(lambda: all(site.runs(job) == 1 for job in held), 60, "they run")
            if place == "web":
                for job in during:
                    site.drop(job)
            getattr(site.disks[place], trouble)()
            if place != "web":
                for job in during:
                    site.drop(job)
            for job in held:  # they end meanwhile
                if place != "compute":
                    put(site.compute / job / "go")
            words = SAYS.get((place, trouble)) or ("{web}" if place == "web" else "{compute}",)
            line = site.says(*[word.format(web=site.web, mirror=site.mirror, compute=site.compute, state=site.state) for word in words])
            print(line)
            if draw.random() < 0.5:
                site.kill()
                site.start()
            site.disks[place].well()
            for job in held:
                put(site.compute / job / "go")
            site.all_end([*before, *during])
            site.told_once()
            assert site.stop() == 0
        figure(f"{place}, {trouble}: {2 * count} jobs, 0 lost, 0 twice")

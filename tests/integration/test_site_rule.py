"""contrib/examples/plots with a real daemon: drawn on the web host after the push and before the mail, tried again, told when it fails."""

import os
import shutil
import xml.etree.ElementTree
from pathlib import Path

from site_kit import Site

EXAMPLES = Path(__file__).parents[2] / "contrib/examples"


def mail_waits(text):
    return text.replace('after = ["push"]', 'after = ["push", "plots"]', 1)


def plain_text(letter):
    return letter.get_body(("plain",)).get_content()


def test_plots_are_drawn_before_the_mail_tried_again_and_their_failure_is_told_in_it(tmp_path):
    rule = (EXAMPLES / "plots.toml").read_text().replace('first = "10s", maximum = "2m"', 'first = "1s", maximum = "1s"')
    site = Site(tmp_path, edit=mail_waits, rules=rule)
    for name, place in ("plots", site.conf.parent / "hooks"), ("draw_plots", site.web.parent / "bin"):
        shutil.copy(EXAMPLES / name, place)
    with site:
        site.drop("ann b/it's good", "printf 'time,dial\\n0,1\\n1,4\\n2,9\\n' >fit.csv")
        site.drop("bob/nothing", "true")
        site.drop("cy/fails", "exit 3")  # no plots for it, and its mail does not wait for any
        good = site.wait(lambda: site.letter("ann b/it's good"), 60, "mail about the good one")
        page = xml.etree.ElementTree.parse(site.web / "ann b/it's good/plots/fit.svg")
        (shape,) = page.getroot()
        assert shape.get("points") == "0.0,200.0 240.0,125.0 480.0,0.0"
        assert os.stat(site.web / "ann b/it's good/plots/fit.svg").st_mtime_ns <= max(p.stat().st_mtime_ns for p in site.mail.glob("ann*"))
        assert "Not everything" not in plain_text(good) and good["Subject"].startswith("DONE")

        bad = site.wait(lambda: site.letter("bob/nothing"), 60, "mail about the one without a table")
        assert bad["Subject"].startswith("DONE") and "Not everything could be finished yet (plots)" in plain_text(bad)
        assert "Not everything could be finished yet (plots)" in bad.get_body(("html",)).get_content()
        assert "no *.csv to draw" in site.watchties("logs", "--hook", "plots").stdout

        failed = site.wait(lambda: site.letter("cy/fails"), 60, "mail about the one that failed")
        assert failed["Subject"].startswith("FAILED") and "Not everything" not in plain_text(failed)

        program = site.web.parent / "bin/draw_plots"  # what asks to come back later is tried again, and the mail waits
        program.rename(site.web.parent / "bin/held")
        program.write_text('#!/bin/sh\n[ -e room ] && exec bin/held "$1"\necho "no room" >&2; exit 75\n')
        program.chmod(0o755)
        site.drop("dan/later", "echo 1 >x.csv; echo 2 >>x.csv")
        site.wait_state("dan/later", "DONE")
        site.wait(lambda: site.record("dan/later").tries.get("plots", {}).get("count", 0) >= 2, 30, "tried again")
        assert site.letter("dan/later") is None and "no room" in site.watchties("status", "dan/later").stdout
        (site.web.parent / "room").touch()
        letter = site.wait(lambda: site.letter("dan/later"), 30, "mail about the late one")
        assert (site.web / "dan/later/plots/x.svg").exists() and "Not everything" not in plain_text(letter)

"""The mail hook, or the daemon about it, is killed in the very moment of sending: one letter, or one repeat with the same Message-ID."""

import random
import socket

import calls
import pytest
from aiosmtpd.controller import Controller
from calls import LASTING, NETWORK
from crash_kit import CrashSite, is_lasting, is_traffic
from crash_lives import Sweep, at, judge, sample, trace
from test_crash_sweep import hold

SHORT = 8.0  # seconds of new lives in the short form

pytestmark = pytest.mark.skipif(bool(calls.why_not()), reason=calls.why_not())


class Inbox:
    """Takes every letter."""

    def __init__(self):
        self.got = []

    async def handle_DATA(self, server, session, envelope):
        self.got.append(envelope.content.decode(errors="replace").replace("\r\n", "\n"))
        return "250 taken"


class MailSite(CrashSite):
    """A site that sends its letters to a real mail server of its own."""

    def __init__(self, folder):
        self.inbox = Inbox()
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        self.server = Controller(self.inbox, hostname="127.0.0.1", port=port)
        self.server.start()
        change = lambda text: text.replace(f'folder = "{folder}/mail"', f'server = "127.0.0.1"\nport = {port}')  # noqa: E731
        super().__init__(folder, names=LASTING | NETWORK, change=change)

    def letters(self):
        return list(self.inbox.got)

    def __exit__(self, *what):
        super().__exit__(*what)
        self.server.stop()


class Judge:
    """Says what is wrong with a job's end, and counts the letters that came twice."""

    def __init__(self):
        self.repeated = []

    def __call__(self, site, job, state, fields):
        sent = sum(f"Experiment:  {job.partition('/')[2]}\n" in text for text in site.letters())
        self.repeated += [str(site.hit)] if sent > 1 else []
        return judge(site, job, state, fields, letters=(1, 2))


def about_mail(point):
    """Return whether a point is one of the mail hook's, or one of the daemon's with its run."""
    here = point.role == "hook mail" or point.role == "daemon" and "/mail" in f"{point.kind} {point.target}"
    return here and (is_lasting(point) or is_traffic(point))


@pytest.mark.slow
def test_a_kill_in_the_moment_of_sending_repeats_one_letter_at_most(tmp_path, seed, long, figure):
    with MailSite(tmp_path / "trace") as site:
        site.start().wait_ready()
        trace(site)
        points = [point for point in dict.fromkeys(trace(site)) if about_mail(point)]
    turns = {at(point): point for point in points}
    order = sample(list(turns), lambda turn: (turns[turn].role, turns[turn].call), random.Random(seed))
    verdict = Judge()
    sweep = Sweep(tmp_path, order, None if long else SHORT, make=MailSite, judge=verdict).run()
    figure(f"mail hook or daemon killed at {len(sweep.killed)} of {len(points)} points about one letter: "
           f"{len(verdict.repeated)} letters came twice, with the same Message-ID, {len(sweep.wrong)} wrong")  # fmt: skip
    assert any("hook mail" in point.role and point.call == "send" for point in points)
    hold(sweep, len(points), long)

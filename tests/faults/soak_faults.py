"""The faults of a soak: what is killed or destroyed, drawn from a seed, one for so many jobs.

Knows: how the processes of a site are told apart.
Must not know: what must hold afterwards.
"""

import os
import signal
from collections import Counter

from procs_kit import below, words_of

A_FAULT = 6.0  # jobs to a fault, on average
TRIES = 30  # looks for a process to kill, before another fault is drawn
ALWAYS = {"hook": 30, "rsync": 18, "agent": 14, "relay": 10, "wrapper": 4, "forkserver": 6, "SIGHUP": 8}
HARD = {"daemon": 20, "journal": 8}


class Faults:
    """Faults for one site. count: how many of each kind there were."""

    def __init__(self, site, flow, draw):
        self.site, self.flow, self.draw, self.count, self.breaches = site, flow, draw, Counter(), []
        self._next, self._kind, self._tries = 0.0, None, 0

    def go_on(self, hard):
        """Do what is due; a process of that kind that is not there now is looked for again at the next call."""
        if self.flow.ended < self._next:
            return
        if self._kind is None or self._tries >= TRIES:
            kinds = ALWAYS | HARD if hard else ALWAYS
            self._kind, self._tries = self.draw.choices(list(kinds), kinds.values())[0], 0
        self._tries += 1
        if self._do(self._kind):
            self.count[self._kind] += 1
            self._kind, self._next = None, self._next + self.draw.expovariate(1 / A_FAULT)

    def _do(self, kind):
        if kind == "daemon":
            self.site.kill()
            self.site.start()
        elif kind == "SIGHUP":
            return self._hang_up()
        elif kind == "journal":
            self._destroy_journal()
        else:
            return self._kill(kind)
        return True

    def _hang_up(self):
        """SIGHUP means something to a daemon that listens; before that it ends any program."""
        with open(f"/proc/{self.site.process.pid}/status") as file:
            caught = next(line for line in file if line.startswith("SigCgt"))
        if int(caught.split()[1], 16) >> (signal.SIGHUP - 1) & 1:
            self.site.process.send_signal(signal.SIGHUP)
            return True
        return False

    def _destroy_journal(self):
        path, how = self.site.state / "journal.sqlite", self.draw.choice(["gone", "short", "garbage"])
        if how == "gone" or not path.exists():
            path.unlink(missing_ok=True)
        elif how == "short":
            os.truncate(path, path.stat().st_size // 2)
        else:
            path.write_bytes(self.draw.randbytes(10_000))

    # ---- killing ----

    def _kill(self, kind):
        found = [pid for pid, words in self._processes() if kind_of(pid, words) == kind]
        if not found:
            return False
        pid = self.draw.choice(found)
        job = job_of(words_of(pid)) if kind == "wrapper" else self._about_to_be(pid) if kind == "agent" else ""
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            return False
        if job:
            self.flow.lost[job] += 1
        return True

    def _about_to_be(self, pid):
        """Return the job whose wrapper this process of `agent submit` may be a moment later, "" for none: such a one is in its directory."""
        try:
            place = os.path.relpath(os.readlink(f"/proc/{pid}/cwd"), self.site.compute)
        except FileNotFoundError:
            return ""
        return "" if place.startswith(("..", "/")) or place.count("/") != 1 else place

    def _processes(self):
        """Yield (pid, words) of what the daemon has started, and what of it outlived its parent: that is ours now."""
        for pid in below(os.getpid()):
            if words := words_of(pid):
                yield pid, words


def kind_of(pid, words):
    """Return what a process of the site is, in the words of a fault; "" for any other."""
    line = " ".join(words)
    if "agent.sh" in line:
        return ("wrapper" if os.getsid(pid) == pid else "") if " wrapper " in line else "agent"
    if "relay.py" in line:
        return "relay"
    if "forkserver" in line:
        return "hook" if os.getpgid(pid) == pid and os.getsid(pid) == pid else "forkserver"
    return "rsync" if os.path.basename(words[0]) == "rsync" else ""


def job_of(words):
    """Return the job of a wrapper, from its words: agent.sh wrapper JOBDIR ATTEMPT TOKEN."""
    return "/".join(words[words.index("wrapper") + 1].split("/")[-2:]) if "wrapper" in words else ""

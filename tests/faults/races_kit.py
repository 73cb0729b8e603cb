"""What the tests of races share: a job's command that tells each of its beginnings and ends, and proves that no two ever overlap.

The command keeps its log below the compute host's compties directory and outside user_data, where nothing travels: what an
attempt has written there is overwritten by no later one. Each line is written under a lock, a directory that is renamed into
place with its holder's pid in it: who is killed at any moment leaves none that nobody can break. An attempt that begins while
a process of another one is alive says so: whoever was killed before is dead, or it is an overlap.
"""

import os
import random
import time
from typing import NamedTuple

from helpers import put

LOGS = "spans"  # below the compute host's compties
STATES = ("PENDING", "SUBMITTED", "DONE", "FAILED")

COMMAND = r"""
name=$(pwd | sed 's,.*/user_data/,,; s,/,+,g') home=$COMPTIES_HOME/spans
locked() {
    mkdir "$home/$name.$$" && echo $$ >"$home/$name.$$/pid"
    until mv -T "$home/$name.$$" "$home/$name.lock" 2>/dev/null; do # over one that is empty it may go: its holder was killed as he let go
        read -r holder <"$home/$name.lock/pid" && { kill -0 "$holder" || rm -rf "$home/$name.lock"; }
        sleep 0.02
    done 2>/dev/null
    "$@"
    rm -rf "$home/$name.lock"
}
begin() {
    read -r before <"$home/$name.at" 2>/dev/null || before=
    [ -z "$before" ] || ! kill -0 "$before" 2>/dev/null || [ "$(readlink "/proc/$before/cwd")" != "$(pwd)" ] ||
        echo "OVERLAP $$ $before" >>"$home/$name"
    echo $$ >"$home/$name.at"
    echo "begin $$ $(date +%s%N) $(cat web.txt 2>/dev/null || echo -) $(cat mirror.txt 2>/dev/null || echo -)" >>"$home/$name"
}
end() {
    echo "end $$ $(date +%s%N)" >>"$home/$name"
    rm -f "$home/$name.at"
}
locked begin
LONG
cat web.txt >out.txt
locked end
"""


def command(seconds="0.$(($$ % 4))"):
    """Return the text of a job's command that takes so long; `seconds` is a word of a shell."""
    return COMMAND.replace("LONG", f"sleep {seconds}")


class Span(NamedTuple):
    """One beginning: the process, when (ns since 1970), the inputs it saw; `ended`: when it came to its end, 0 if it never did."""

    pid: int
    began: int
    web: str
    mirror: str
    ended: int


class Log:
    """The log of all jobs of a Site."""

    def __init__(self, site):
        self.site, self.home = site, site.compute.parent / LOGS
        self.home.mkdir()

    def spans(self, job):
        """Return the Spans of a job in order; fail if any two have overlapped."""
        path, began, ended = self.home / job.replace("/", "+"), [], {}
        for line in path.read_text().splitlines() if path.exists() else ():
            word, pid, *rest = line.split(" ")
            assert word != "OVERLAP", f"two attempts of {job} at once:\n{path.read_text()}\n{self.site.said()}"
            if word == "begin":
                began.append((int(pid), int(rest[0]), *rest[1:]))
            else:
                ended[int(pid)] = int(rest[0])
        return [Span(*one, ended.get(one[0], 0)) for one in began]


def edit(folder, name, text):
    """Change a file at once, as an editor does: it is never seen half-way."""
    put(folder / f".{name}.new", f"{text}\n")
    os.rename(folder / f".{name}.new", folder / name)


def at_rest(site, job):
    """Return whether nothing is left to do for a job, and the web host shows how its last attempt ended."""
    rec, (state, fields) = site.record(job), site.marker(job)
    shown = (state, fields.get("token")) == (rec.phase, rec.token)
    mirror = site.mirror / job
    hidden = [mirror / name for name in (".watchties.open", "PENDING", "CANCEL") if (mirror / name).exists()]
    waits = any((site.web / job / name).exists() for name in ("PENDING", "CANCEL"))
    return rec.phase in ("DONE", "FAILED") and shown and not hidden and not waits


def consistent(site, job):
    """Fail unless just one state stands at each place, and it is the same attempt's at the web host and in the mirror."""
    rec = site.record(job)
    for place, tree in ("web", site.web), ("mirror", site.mirror):
        there = {name for name in (*STATES, "CANCEL") if (tree / job / name).exists()}
        assert there == {rec.phase}, f"{job}: {there} at the {place}, the record says {rec.phase}\n{site.said()}"
        fields = site.marker(job, tree=tree)[1]
        assert (fields["token"], fields["attempt"]) == (rec.token, str(rec.attempt)), f"{job}: {fields} at the {place}"
    left = [path for tree in (site.web, site.mirror) for path in (tree / job).glob(".watchties.*")]
    assert not left, f"{job}: left behind: {left}"
    there = {name for name in STATES if (site.compute / job / name).exists()}
    if there and rec.contacted:
        fields = site.marker(job, tree=site.compute)[1]
        assert len(there) == 1, f"{job}: {there} on the compute host"
        assert fields.get("token") != rec.token or there == {rec.phase}, f"{job}: {there} on the compute host, the record says {rec.phase}"


def pause(draw, upto):
    """Sleep for a random time: often very short, for the races are there."""
    time.sleep(upto * draw.random() ** 3)


def drawing(seed):
    return random.Random(seed)

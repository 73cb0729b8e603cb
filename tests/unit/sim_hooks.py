"""The hooks of the simulation: the steps of the real ones, one by one, so that a crash or a touch fits between any two.

Knows: the order of steps of pull, submit, report, poll, fetch, push, mail, cancel; the real lists of an attempt (manifest.py).
Must not know: when a hook is started, what becomes of its outcome.

A hook is a generator. It yields a Call of the agent, or a Local: something done in one go on a directory. It is sent
the result, or thrown Unreachable; it returns (outcome, fields).
"""

import os
import shutil

from watchties import agent, hookkit, manifest, webstate
from watchties.errors import Unreachable
from watchties.model import DONE, FAILED

from sim_far import Call

GRACE = 60


class Local:
    """A step that is no call of the agent. host: the far host whose directory it touches, if any."""

    locks = stopped = False

    def __init__(self, label, action, host=None):
        self.label, self.action, self.host = label, action, host


def steps(system, rule, told, line):
    """Return the generator of a hook for one job. told: the line the hook was given, as a dict; line: the same as JSON."""
    job = hookkit.Job.parse(line)
    return {"pull": pull, "submit": submit, "report": report, "poll": poll, "fetch": fetch, "push": push, "mail": mail,
            "cancel": cancel}[rule](system, job, told)  # fmt: skip


def carry(source, target, paths):
    """Copy files that differ, each of them whole; nothing is deleted. What rsync does."""
    there, here = manifest.walk(source), manifest.walk(target)
    for path in paths:
        if path in there and there[path] != here.get(path):
            os.makedirs(os.path.dirname(os.path.join(target, path)), exist_ok=True)
            hidden = os.path.join(target, ".watchties.partial")
            shutil.copy2(os.path.join(source, path), hidden)
            os.rename(hidden, os.path.join(target, path))


def in_two_steps(label, source, target, spared, host):
    """Yield the two halves of a transfer: a crash between them leaves the inputs torn."""
    yield Local(f"{label} begins", lambda: carry(source, target, [p for p in manifest.walk(source) if p == "one"]), host)
    yield Local(label, lambda: carry(source, target, [p for p in manifest.walk(source) if p not in spared]), host)


def pull(system, job, told):
    web, identity = system.web.data / job.job, job.identity
    spared = manifest.read(job.fields["spare"]) or {} if job.fields.get("spare") else {}
    while True:
        yield from in_two_steps("rsync web -> mirror", web, job.dir, spared, system.web)
        now, *_, latest = agent.identities(_flat((yield Call(system.web, "identify", line=[job.job]))))
        if now in ("", identity):
            return "done", {"identity": now, "latest": latest}
        identity = now


def _flat(answer):
    return (answer.word, *answer.details)


def submit(system, job, told):
    host = system.hosts[job.host]
    if job.first:
        try:
            yield Local("knock", lambda: None, host)
        except Unreachable:
            return "retry", {"host_down": True, "untouched": 1}
    claim = yield Call(host, "claim", told["run"], line=_attempt(job))
    if claim.word == "cancelled":
        return "done", {"state": FAILED, "cause": "cancelled"}
    if claim.word in ("new", "held"):
        there = host.data / job.job
        yield Local("manifest", lambda: manifest.write("manifest", {job: manifest.walk(job.dir)}))
        yield from in_two_steps("rsync mirror -> compute", job.dir, there, {}, host)
    elif claim.word == "begun":
        return "done", {"id": claim.values["id"]}
    elif claim.word == "done":
        return "done", {"id": claim.out[-1]}
    else:
        assert claim.word == "unknown", claim
        if (yield Local("ask by name", lambda: host.knows(job.token), host)):
            return "done", {"id": ""}
        asked = job.fields.get("asked")
        if not asked or system.now - asked < GRACE:
            return "retry", {"asked": asked or system.now}
    answer = yield Call(host, "submit", told["run"], line=[*_attempt(job), host.submit_command(system.lose_reply())])
    return ("done", {"id": answer.out[-1]}) if answer.word == "replied" else ("retry", {})


def _attempt(job):
    return [job.job, job.attempt, job.token]


def report(system, job, told):
    pairs = agent.pairs(webstate.content(job))
    accepted = ",".join(map(str, job.accepted)) or "-"
    answer = yield Call(system.web, "publish", line=[job.job, job.marker, job.attempt, job.token, accepted, *pairs])
    assert answer.word in ("ok", "older"), answer
    pending, cancel = agent.identities((*answer.details, "-", "-")[:2])
    return "done", {"pending": pending, "cancel": cancel}


def push(system, job, told):
    made = manifest.read(manifest.place(job, "made"))
    if made is None and job.marker == DONE:
        return "failed", {}
    web = system.web.data / job.job
    yield Local("rsync mirror -> web", lambda: carry(job.dir, web, made or {}), system.web)
    return (yield from report(system, job, told))


def poll(system, job, told):
    host = system.hosts[job.host]
    known = yield Local("ask the scheduler", lambda: host.knows(job.token), host)
    answer = yield Call(host, "status", line=_attempt(job))
    if answer.word == "exit":
        return "done", {"seen": DONE if answer.values["code"] == "0" else FAILED}
    if answer.word == "cancelled":
        return "done", {"seen": FAILED}
    gone = answer.word == "begun" and answer.values["alive"] == "no" or answer.word == "submitted" and not known
    return "done", {"seen": "lost" if gone else ""}


def fetch(system, job, told):
    host, there = system.hosts[job.host], system.hosts[job.host].data / job.job
    left = yield Call(host, "status", line=_attempt(job))
    if left.word not in ("exit", "cancelled") and job.marker != "lost":
        return "retry", {}
    sent = manifest.read(manifest.place(job, "manifest"))
    far = manifest.walk(there)
    spared = {p for p in manifest.changed(sent, manifest.walk(job.dir)) if far.get(p) != manifest.walk(job.dir).get(p)}
    listed = {p: entry for p, entry in far.items() if p not in spared}
    yield Local("rsync compute -> mirror", lambda: carry(there, job.dir, listed), host)
    made = manifest.made(sent, manifest.walk(job.dir), listed)
    yield Local("list of what was made", lambda: manifest.write("made", {job: made}))
    if left.word != "exit":
        return "done", {"state": FAILED, "cause": "lost" if left.word != "cancelled" else "cancelled"}
    code = left.values["code"]
    return "done", {"state": DONE if code == "0" else FAILED, "exit": code}


def mail(system, job, told):
    yield Local("send", lambda: system.mails.append(job.token))
    return "done", {}


def cancel(system, job, told):
    host = system.hosts[job.host]
    answer = yield Call(host, "cancel", line=[*_attempt(job), host.cancel_command(job.fields.get("id"))])
    return ("done", {"how": answer.word}) if answer.word in ("none", "exited", "ended") else ("retry", {})

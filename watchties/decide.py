"""What is to be done for one job: the job as seen, the rules and the time go in, actions with reasons come out.

Knows: the protocol of a job's life. Its rules are functions with the rule's name.
Must not know: disks, clocks, processes, queues. Nothing here reads or writes anything.

Order matters in one way only: a Step (something the daemon itself does on disk in a moment) comes before every
Start (a run of a hook); after a Step the job is looked at again and decided anew. Nothing is remembered between
two decisions but what stands in the record and in the markers, so a restart is the same thing as a pause.
"""

from watchties.fire import due_rules, others, start
from watchties.model import CANCEL, COMPUTE, FINAL, MIRROR, PENDING, REQUESTS, SUBMITTED, WEB, Request
from watchties.record import GAVE_UP, LOST, REMOVED
from watchties.seen import Decision, Start, Step, Wait, accepted_everything, open_cancel, stands, standing_request

POLL_OLDER = 10  # a job is asked after every `poll`, or every tenth of its age if that is longer
END_SOON = 5.0  # seconds after SUBMITTED in which an end that is seen is expected on the web host
POLL_SELDOM = 900  # but at least so often, in seconds


def decide(seen, world):
    """Return the Decision for one job."""
    if seen.removed and seen.busy:
        return Decision(waits=(Wait("daemon", f"{REMOVED}; a run is at work for it still, at {', '.join(sorted(seen.busy))}"),))
    step = next_step(seen, world)
    if step:
        return Decision(step)
    actions = [a for rule in (pull, report, push, tidy, submit, poll, fetch, cancel, others) for a in rule(seen, world)]
    starts = tuple(a for a in actions if isinstance(a, Start))
    waits = tuple(a for a in actions if isinstance(a, Wait))
    if not starts and not waits and may_close(seen, world):
        return Decision(Step("close", "everything has ended"))
    return Decision(None, starts, waits)


# ---- what the daemon does itself ----


def next_step(seen, world):
    """Return the Step that comes before all else, or None."""
    record, mirror = seen.record, seen.mirror
    if seen.removed:
        return Step("remake", REMOVED)
    if restore_hidden() and mirror.taken:
        name = next(iter(mirror.taken))
        return Step("restore", f"{name} was left under its hidden name", marker=name)
    pending = standing_request(seen, MIRROR, PENDING)
    if pending and not record.has_accepted(pending):
        earlier = standing_request(seen, WEB, CANCEL)
        if earlier and not record.has_accepted(earlier):  # it stood before this request was accepted, so it does not cover it
            return Step("cancel", "CANCEL on the web host is followed by PENDING in the mirror", earlier, CANCEL)
        return Step("accept", "PENDING stands in the mirror", pending)
    if step := cancel_step(seen):
        return step
    if record.phase and not stands(seen):
        return Step("publish", f"the mirror does not show {record.phase}", marker=record.phase)
    if pending and record.phase != PENDING:
        return Step("take_off", "PENDING has been accepted", marker=PENDING)
    stop = standing_request(seen, MIRROR, CANCEL)
    if stop and record.has_accepted(stop):
        return Step("take_off", "CANCEL has been accepted", marker=CANCEL)
    return None


def cancel_step(seen):
    """Return the Step that accepts a CANCEL for which no host has to be asked, or None."""
    request = open_cancel(seen)
    if not request or not seen.record.attempt or cancel_must_wait(seen, request):
        return None
    covered, record = cancel_order(seen.record, request), seen.record
    if record.phase in (PENDING, SUBMITTED) and covered and record.contacted:
        return None  # `agent cancel` has to prove it
    stop = record.phase == PENDING and covered
    reason = "cancelled before anything was submitted" if stop else "CANCEL stops nothing: no older request is open"
    return Step("cancel", reason, request, CANCEL, stop)


def cancel_must_wait(seen, request):
    """Return why a CANCEL cannot be taken up yet, or ""."""
    pending = standing_request(seen, request.place, PENDING)
    if pending and not seen.record.has_accepted(pending) and pending.ns < request.ns:
        return "an older PENDING is to be accepted first"
    if WEB in seen.busy and MIRROR in seen.busy:
        return "a pull is under way"
    if COMPUTE in seen.busy:
        return "a run at the compute host is under way"
    return "the attempt before is still being ended" if seen.record.old else ""


def cancel_order(record, request):
    """Return whether every request that the attempt serves is older than this CANCEL.

    By mtime on one host; between hosts by acceptance, as no two clocks are compared: what is served has been
    accepted, so it is older.
    """
    served = map(Request.parse, record.served)
    return all(r.ns < request.ns for r in served if r.place == request.place)


def restore_hidden():
    """Return True: a PENDING found under its hidden name is put back before all else."""
    return True


def may_close(seen, world):
    """Return whether nothing is left to do, so that the open flag may go."""
    record = seen.record
    if seen.busy or record.old:
        return False
    if record.attempt == 0:
        return not record.pulling
    return record.phase in FINAL and accepted_everything(seen) and all(record.ended_as(r.name) for r in due_rules(seen, world))


# ---- rules: each yields Start or Wait ----


def pull(seen, world):
    """Bring the inputs of a new request; repeat a pull that was interrupted."""
    record, request = seen.record, standing_request(seen, WEB, PENDING)
    new = request and not record.has_accepted(request)
    if not new and not unfinished_pull(record):
        return
    reason = "a new PENDING on the web host" if new else "an interrupted pull is repeated"
    if world.blocked:
        yield Wait("pull", world.blocked)
    else:
        yield from start(seen, world, "pull", world.tree.web, reason, request=request if new else None)


def unfinished_pull(record):
    """Return whether a pull that has begun must be repeated: not when it gave up and the job FAILED of it."""
    gave_up = record.phase in FINAL and not record.contacted
    return bool(record.pulling) and not gave_up


def pull_open(record):
    """Return whether a pull has begun and not ended, so that nothing may leave the mirror."""
    return unfinished_pull(record)


def report(seen, world):
    """Show SUBMITTED on the web host; not if the job's end is seen already and can be shown soon: a report costs as much as a push."""
    if seen.record.phase != SUBMITTED or seen.record.ended_as("report"):
        return
    since = float(seen.record.fields.get("since") or 0)
    if seen.compute in FINAL and since <= world.now < since + END_SOON:
        yield Wait("report", "its end is to be shown instead", since + END_SOON)
    else:
        yield from start(seen, world, "report", world.tree.web, "the web host is to show SUBMITTED", marker=SUBMITTED)


def push(seen, world):
    """Bring what the job made to the web host, and publish the state there."""
    record = seen.record
    if record.phase not in FINAL or record.ended_as("push") not in ("", GAVE_UP):
        return
    if pull_open(record):
        yield Wait("push", "a pull is open: nothing leaves the mirror before it has ended")
        return
    yield from start(seen, world, "push", world.tree.web, f"results and {record.phase} go to the web host", marker=record.phase)


def tidy(seen, world):
    """Publish the state on the web host again, where an accepted PENDING or a leftover stands there."""
    record = seen.record
    if record.phase == PENDING or not shown_on_web(record):
        return
    if any(r and record.has_accepted(r) for r in (standing_request(seen, WEB, n) for n in REQUESTS)) or seen.web.taken:
        yield from start(seen, world, "report", world.tree.web, "an accepted request still stands on the web host", marker=record.phase)


def shown_on_web(record):
    """Return whether the web host has been shown the present phase: a push that gave up has not brought the results there."""
    return record.ended_as("report" if record.phase == SUBMITTED else "push") not in ("", GAVE_UP)


def submit(seen, world):
    """Claim, transfer, submit."""
    record = seen.record
    if record.phase != PENDING:
        return
    if pull_open(record):
        yield Wait("submit", "a pull is open: nothing leaves the mirror before it has ended")
    elif cancel_waits(record):
        why = record.tries.get("cancel", {}).get("reason")
        yield Wait("submit", f"attempt {record.old.attempt} on {record.old.host} must first be proven ended" + (f": {why}" if why else ""))
    elif open_cancel(seen) and not cancel_must_wait(seen, open_cancel(seen)) and record.contacted:
        yield Wait("submit", "it is being cancelled")
    else:
        host, why = choose_host(record, world)
        if why:
            yield Wait("submit", why)
        else:
            yield from start(seen, world, "submit", host, f"it goes to {host}")


def cancel_waits(record):
    """Return whether the attempt before has still to be proven ended, wherever it was."""
    return record.old is not None


def choose_host(record, world):
    """Return (host, why not) for an attempt: its own once it has been contacted, else the first that is up.

    A job that names its host in CPU_SERVER waits for that one.
    """
    if record.contacted:
        return record.host, ""
    named = record.fields.get("cpu_server")
    wanted = [named] if named else list(world.tree.compute if world.tree.failover else world.tree.compute[:1])
    for host in wanted:
        if host not in world.down:
            return host, ""
    return "", "; ".join(world.down[host] for host in wanted)


def poll(seen, world):
    """Ask the scheduler: soon for a young job, seldom for an old one."""
    record = seen.record
    if record.phase != SUBMITTED or seen.compute or LOST in record.fields or not stands(seen):
        return
    every, since = world.poll.get(record.host, 30.0), float(record.fields.get("since") or 0)
    due = seen.polled + min(max(every, (world.now - since) / POLL_OLDER), max(POLL_SELDOM, every))
    if not seen.polled or not seen.polled <= world.now < due:  # the former: the clock was set back
        yield from start(seen, world, "poll", record.host, f"{record.host} is asked how it stands")
    else:
        yield Wait("poll", f"it runs or waits on {record.host}", due)


def fetch(seen, world):
    """Bring the results to the mirror and judge them."""
    record = seen.record
    if record.phase != SUBMITTED or not seen.compute or LOST in record.fields:
        return
    if pull_open(record):
        yield Wait("fetch", "a pull is open: nothing else touches the mirror before it has ended")
    elif world.blocked:
        yield Wait("fetch", world.blocked)
    else:
        yield from start(seen, world, "fetch", record.host, f"{record.host} shows {seen.compute}", marker=seen.compute)


def cancel(seen, world):
    """Stop an attempt: the overtaken one or one that may run on, the current one if CANCEL covers it, or one that is lost, before it is tried again."""
    record = seen.record
    if record.old:
        yield from start(
            seen, world, "cancel", record.old.host, f"attempt {record.old.attempt} must be proven ended", attempt=record.old.token
        )
        return
    request = open_cancel(seen)
    if not request and record.phase == SUBMITTED and LOST in record.fields:
        yield from start(seen, world, "cancel", record.host, f"lost ({record.fields[LOST]}): nothing of it may run when it is tried again")
    if not request or not record.attempt:
        return
    if why := cancel_must_wait(seen, request):
        yield Wait("cancel", why)
    else:
        yield from start(seen, world, "cancel", record.host, f"CANCEL stands at the {request.place}", request=request)

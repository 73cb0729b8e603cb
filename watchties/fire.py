"""Which rules a phase fires, and whether one may start now.

Knows: the places that a run of a rule locks, rules of a site, what can stand in the way of any rule.
Must not know: the protocol (decide.py), disks, clocks, processes.
"""

from watchties.model import COMPUTE, DONE, FAILED, FINAL, MIRROR, PENDING, WEB
from watchties.record import GAVE_UP
from watchties.seen import Start, Wait, stands

# The places that a run of a rule locks for its jobs. mail and notice touch none, so they lock their own name.
TOUCHES = {
    "pull": {WEB, MIRROR},
    "submit": {MIRROR, COMPUTE},
    "report": {WEB},
    "poll": {"poll"},
    "fetch": {COMPUTE, MIRROR},
    "push": {MIRROR, WEB},
    "mail": {"mail"},
    "cancel": {COMPUTE},
}


def others(seen, world):
    """mail, and the rules of a site: after the marker they wait for, and after the rules they name."""
    record, due = seen.record, due_rules(seen, world)
    never = site_rules(world) - {rule.name for rule in due}  # a site's rule on DONE alone holds up no mail about FAILED
    for rule in due:
        if rule.name == "push" or record.ended_as(rule.name) not in ("", GAVE_UP):
            continue  # what has given up is tried again when its time comes; push has its own function
        missing = [name for name in rule.after if not record.ended_as(name) and name not in never]
        if missing:
            yield Wait(rule.name, f"{rule.name} waits for {', '.join(missing)}")
        else:
            yield from start(seen, world, rule.name, host_of(rule, seen, world), f"{record.phase} stands", marker=record.phase)


def due_rules(seen, world):
    """Return push, mail and the site's rules that the present phase fires."""
    own = site_rules(world) | {"push", "mail"}
    return [r for r in world.rules.values() if r.name in own and fires(r, seen)]


def site_rules(world):
    """Return the names of the rules that are not watchties' own."""
    return world.rules.keys() - TOUCHES.keys() - {"notice"}


def fires(rule, seen):
    """Return whether one of the rule's PLACE:MARKER stands now."""
    record = seen.record
    if not record.phase or not stands(seen):
        return False
    shown = {f"{MIRROR}:{record.phase}"}
    if record.phase == PENDING:
        shown.add(f"{WEB}:{PENDING}")  # it stands there until SUBMITTED is reported
    if record.phase in FINAL and record.fields.get("exit") not in (None, ""):
        shown.add(f"{COMPUTE}:{DONE if str(record.fields['exit']) == '0' else FAILED}")
    return not shown.isdisjoint(rule.on)


def host_of(rule, seen, world):
    """Return the host whose lane a rule without a fixed one belongs to, "" for the mirror alone."""
    places = {on.split(":")[0] for on in rule.on}
    return world.tree.web if WEB in places else seen.record.host if COMPUTE in places else ""


def touches(rule):
    """Return the places a run of the rule locks."""
    return TOUCHES.get(rule.name) or {on.split(":")[0] for on in rule.on} | {rule.name}


def start(seen, world, name, host, reason, *, attempt="", marker="", request=None):
    """Yield the Start of a rule, or the Wait that stands in its way."""
    record = seen.record
    later = record.tries.get(name)
    if busy := TOUCHES.get(name, touches(world.rules[name])) & seen.busy:
        yield Wait(name, f"{name} waits: a run is at work at {', '.join(sorted(busy))}")
    elif later and later.get("at", 0) <= world.now < later["next"]:  # not if the clock was set back since
        yield Wait(name, f"{name} is tried again: {later['reason']}", later["next"])
    elif host and host not in (world.tree.web, *world.tree.compute):
        yield Wait(name, f"{name} waits: {host} is no host of tree {seen.id.tree} any more; put it back into the configuration")
    elif host in world.down:
        yield Wait(name, world.down[host])
    elif (held := world.held.get((name, host))) and held.holds(world.now):
        yield Wait(name, held.reason, held.until)
    else:
        yield Start(name, host, reason, attempt or record.token, marker, request)

"""Showing a job's state on the web host, from the hooks report and push.

Knows: what stands in a marker there, and what the agent's answers to `publish` mean for a run.
Must not know: who publishes at other places, transfers.
"""

from watchties.agent import identities

# Fields that one run hands to the next, or to the daemon: not for readers of markers.
INTERNAL = {"spare", "asked", "seen", "note", "identity", "pending", "cancel", "host_down", "later", "not_carried", "full", "short_since",
            "missing", "lost", "resubmitted", "state", "attempt", "token", "host", "since", "cpu_server"}  # fmt: skip


def content(job):
    """Return the fields of a job's marker, those that identify it first."""
    known = {"state": job.marker, "attempt": job.attempt, "token": job.token, "host": job.host}
    return known | {key: value for key, value in job.fields.items() if key not in INTERNAL and not isinstance(value, (dict, list))}


def show(run, agent, jobs, begun=None, shown=lambda jobs: None):
    """Publish each job's state and settle it: done also where a newer one stands, or the job is gone from there.

    shown(jobs): called before they are settled with those that are done: what had come there is lasting now.
    """
    rows = []
    for job, answer in agent.publish({job: content(job) for job in jobs}, begun).items():
        if answer.word in ("ok", "older", "missing"):
            pending, cancel = identities((*answer.details, "-", "-")[:2])
            note = {"older": "a newer state stands there", "missing": "the job is not there any more"}.get(answer.word, "")
            rows.append((job, "done", note, {"pending": pending, "cancel": cancel}))
        else:
            rows.append((job, "retry", f"{run.host} could not show {job.marker}: {' '.join(answer.details[2:]) or answer.detail()}", {}))
    shown([job for job, outcome, *_ in rows if outcome == "done"])
    run.settle(rows)

"""What the daemon tells, and to whom: the journal, the logs, standard error, the administrator.

Knows: the journal, the hook logs, and how often the same thing may be said.
Must not know: what is to be done about any of it.
"""

import logging
import time

from watchties.model import FAILED, PENDING, JobId, one_line, printable

SAME_NOTICE = 3600.0  # seconds before the administrator is told the same again
SAME_PROBLEM = 300.0  # seconds before the log says the same again

log = logging.getLogger("watchties")


class Teller:
    """Gathers rows for the journal and writes them once a pass. on_host_failed(host, reason), on_notice(subject, text),
    on_phase(job): it is PENDING, SUBMITTED, DONE or FAILED now."""

    def __init__(self, journal, hooklog, clock=time.time):
        self.journal, self.hooklog, self.clock = journal, hooklog, clock
        self.on_host_failed = self.on_notice = self.on_phase = lambda *_: None
        self._events, self._rows, self._said = [], {}, {}

    # ---- jobs ----

    def changed(self, job, before):
        """A job's record has changed, or the job is at rest."""
        rec = job.record
        if (rec.phase, rec.attempt) != (before.phase, before.attempt):
            text = rec.fields.get("reason") or (f"on {rec.host}" if rec.host else "")
            took, cause = rec.fields.get("seconds"), rec.fields.get("cause") if rec.phase == FAILED else ""
            self._events.append((self.clock(), *self._key(job), rec.attempt, "", rec.phase, text, seconds(took), cause or ""))
            log.info("%s: attempt %d %s%s", job.id, rec.attempt, rec.phase, f": {text}" if text else "")
            self.on_phase(job)
        job.reason = ""
        self._put(job)

    def waiting(self, job, reason):
        """A job waits, and why."""
        if reason != job.reason:
            job.reason = reason
            self._put(job)

    def _put(self, job):
        rec = job.record
        state = rec.phase or (PENDING if rec.pulling or job.web.pending else "")
        if not state:
            return
        told = rec.fields.get("reason", "")
        self._rows[job.id] = (*self._key(job), state, rec.attempt, rec.host, told, self.clock(), one_line(job.reason))

    @staticmethod
    def _key(job):
        return job.id.tree, job.id.job

    def refuse(self, job_id, reason):
        """A name or a directory is refused: said once for each."""
        if self.journal.refuse_once(job_id.tree, printable(job_id.job), reason):
            self._events.append((self.clock(), job_id.tree, printable(job_id.job), 0, "", "refused", one_line(reason)))
            log.warning("refused: %s", one_line(reason))

    def refuse_name(self, tree, name, reason):
        """A name that no job may have was announced."""
        self.refuse(JobId(tree or "-", name), reason if printable(name) in reason else f"{printable(name)}: {reason}")

    # ---- runs ----

    def run_begins(self, run):
        self.hooklog.begin(run)

    def run_goes_on(self, run):
        self.hooklog.feed(run)

    def run_ended(self, ended):
        self.hooklog.end(ended)
        now = self.clock()
        for job_id in ended.run.ids():
            told = ended.outcome(job_id)
            event, text = (told.outcome, told.reason) if told else ("interrupted", "")
            self._events.append((now, job_id.tree, job_id.job, 0, ended.run.rule, event, text or f"run {ended.run.id}", ended.seconds))

    # ---- the rest ----

    def host_failed(self, host, reason):
        self.on_host_failed(host, reason)

    def problem(self, what, text):
        """Something is wrong that is nobody's fault in particular; the log says it, not too often."""
        if self._news("problem", f"{what}: {text}", SAME_PROBLEM):
            log.warning("%s: %s", what, text)

    def notice(self, subject, text):
        """Something is for the administrator; the log says it too, not too often."""
        if self._news("log", subject, SAME_PROBLEM):
            log.warning("%s", subject)
        if self._news("notice", subject, SAME_NOTICE):
            self.on_notice(subject, text)

    def _news(self, kind, text, every):
        now = self.clock()
        if 0 <= now - self._said.get((kind, text), -every) < every:
            return False
        self._said = {k: t for k, t in self._said.items() if 0 <= now - t < SAME_NOTICE}
        self._said[kind, text] = now
        return True

    def flush(self):
        """Write what has gathered to the journal."""
        rows, self._rows = self._rows, {}
        events, self._events = self._events, []
        if rows:
            self.journal.put_many(list(rows.values()))
        if events:
            self.journal.note_many(events)


def seconds(told):
    """Return what a marker says of seconds as a number; None if it says none. It comes from another host."""
    try:
        return float(told)
    except (TypeError, ValueError):
        return None

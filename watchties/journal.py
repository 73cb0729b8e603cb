"""The journal: an SQLite index of the jobs as last seen, their history, and the names that were refused.

Knows: tables, transactions, what to do with a file that is damaged, foreign, of a newer format, or gone.
Must not know: markers, records, what a state means. Nothing here is the truth: rebuild() makes the index again from the disk.

So nothing here is ever fatal to the daemon, and nothing waits for the disk: WAL, synchronous=OFF, one commit a batch. A write that
fails (disk full, say) is told once and dropped; a file that cannot be used is renamed aside, and `fresh` asks for a rebuild.
"""

import contextlib
import logging
import os
import sqlite3
import time
import urllib.parse
from typing import NamedTuple

from watchties.errors import UserError

FORMAT, BUSY_MS = 2, 5000
PRUNE_ROWS = 10_000  # history rows that one prune() takes at most: some 20 ms
UNUSABLE = (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)

log = logging.getLogger(__name__)

TABLES = """
CREATE TABLE job (tree TEXT, job TEXT, state TEXT, attempt INTEGER, host TEXT, reason TEXT, since REAL, waiting_on TEXT,
                  PRIMARY KEY (tree, job)) WITHOUT ROWID;
CREATE TABLE history (id INTEGER PRIMARY KEY, at REAL, tree TEXT, job TEXT, attempt INTEGER, rule TEXT, event TEXT, text TEXT,
                      seconds REAL, cause TEXT);
CREATE INDEX history_job ON history (tree, job);
CREATE INDEX history_at ON history (at);
CREATE TABLE refused (tree TEXT, name TEXT, reason TEXT, at REAL, PRIMARY KEY (tree, name)) WITHOUT ROWID;
"""


class JobRow(NamedTuple):
    """A job as last seen. since: seconds since 1970 of the state; waiting_on: what it waits for, in words."""

    tree: str
    job: str
    state: str
    attempt: int
    host: str
    reason: str
    since: float
    waiting_on: str


class Event(NamedTuple):
    """A line of history. when: seconds since 1970; rule: "" where none was concerned. seconds: that the run or the job took."""

    when: float
    tree: str
    job: str
    attempt: int
    rule: str
    event: str
    text: str
    seconds: float | None = None
    cause: str = ""


JOB_COLUMNS = ", ".join(JobRow._fields)
EVENT_COLUMNS = "at, " + ", ".join(Event._fields[1:])
# Measured with 100,000 jobs: an index on state, or the 2 MB of cache that SQLite takes by itself, makes a batch cost half as much
# again; a scan of the whole table for `status` takes 15 ms.
PUT = f"""INSERT INTO job ({JOB_COLUMNS}) VALUES (?,?,?,?,?,?,?,?) ON CONFLICT (tree, job) DO UPDATE
          SET ({JOB_COLUMNS}) = ({', '.join('excluded.' + name for name in JobRow._fields)})
          WHERE ({JOB_COLUMNS}) IS NOT ({', '.join('excluded.' + name for name in JobRow._fields)})"""
CACHE_KB = 16_000


class Unusable(Exception):
    """The file is no journal of ours that can be used; the message is one of: damaged, foreign, newer."""


class Reader:
    """The journal to read from, also while a daemon writes it. Raises UserError if there is none, or it cannot be used."""
    def __init__(self, path):
        self.path = os.fspath(path)
        try:
            self.db = _connect(f"file:{urllib.parse.quote(self.path)}?mode=ro")
            _check(self.db)
        except (sqlite3.Error, Unusable) as e:
            raise UserError(f"{self.path}: cannot be read ({e}); start `watchties run`, or `watchties rebuild`") from e

    def _rows(self, sql, values=()):
        try:
            return self.db.execute(sql, values).fetchall()
        except sqlite3.Error as e:
            raise UserError(f"{self.path}: cannot be read ({e}); `watchties rebuild` makes it again") from e

    def jobs(self, states=None, user=None, limit=None):
        """Return JobRows, the latest change first: of these states, of this user, `limit` at most; None is all."""
        where, values = ["1"], []
        if states is not None:
            where.append(f"state IN ({','.join('?' * len(states))})")
            values += states
        if user is not None:
            where.append("(job = ? OR substr(job, 1, ?) = ?)")
            values += [_text(user), len(_text(user)) + 1, _text(user) + "/"]
        sql = f"SELECT {JOB_COLUMNS} FROM job WHERE {' AND '.join(where)} ORDER BY since DESC, tree, job LIMIT ?"
        return [JobRow(*row) for row in self._rows(sql, (*values, -1 if limit is None else limit))]

    def job(self, tree, job):
        """Return the JobRow of a job, or None."""
        rows = self._rows(f"SELECT {JOB_COLUMNS} FROM job WHERE tree = ? AND job = ?", (_text(tree), _text(job)))
        return JobRow(*rows[0]) if rows else None

    def find(self, text):
        """Return [(tree, job)] that `text` names: JOB, TREE:JOB; if none, the jobs whose last parts it is (EXP alone)."""
        text = _text(text)
        tree, _, rest = text.partition(":")
        exact = self._rows("SELECT tree, job FROM job WHERE job = ? OR (tree = ? AND job = ?) ORDER BY 1, 2", (text, tree, rest))
        ending = "SELECT tree, job FROM job WHERE substr(job, ?) = ? ORDER BY 1, 2"
        return exact or self._rows(ending, (-len(text) - 1, "/" + text))

    def history(self, tree, job, limit=None):
        """Return the last `limit` Events of a job (None: all), oldest first."""
        sql = f"SELECT {EVENT_COLUMNS} FROM history WHERE tree = ? AND job = ? ORDER BY id DESC LIMIT ?"
        return [Event(*row) for row in reversed(self._rows(sql, (_text(tree), _text(job), -1 if limit is None else limit)))]

    def happened(self, since, until):
        """Return the Events between two times (seconds since 1970), job by job, each job's oldest first."""
        sql = f"SELECT {EVENT_COLUMNS} FROM history WHERE at >= ? AND at < ? ORDER BY tree, job, id"
        return map(Event._make, self._rows(sql, (since, until)))

    def begins(self):
        """Return when the oldest line of history was written (seconds since 1970); None if there is none."""
        return self._rows("SELECT min(at) FROM history")[0][0]

    def counts(self):
        """Return {state: number of jobs}."""
        return dict(self._rows("SELECT state, count(*) FROM job GROUP BY state"))

    def close(self):
        self.db.close()


class Journal(Reader):
    """The journal to write to; one daemon at a time. fresh: the index is new and empty, so that it wants a rebuild()."""
    def __init__(self, path, clock=time.time):
        self.path, self.clock, self.fresh, self.told = os.fspath(path), clock, False, ""
        self._open()

    def note_many(self, events):
        """Append Events, or (when, tree, job, attempt, rule, event, text), to the history, in one commit."""
        return self._write([(f"INSERT INTO history ({EVENT_COLUMNS}) VALUES (?,?,?,?,?,?,?,?,?)", [Event(*row) for row in events])])

    def put_many(self, rows):
        """Put (tree, job, state, attempt, host, reason, since, waiting_on) into the index, over what stands there, in one commit."""
        return self._write([(PUT, rows)])

    def forget(self, tree, known, has_left):
        """Take those jobs of a tree out of the index that are not `known`, if has_left(name) says so."""
        doubted = [row for row in self._rows("SELECT tree, job FROM job WHERE tree = ?", (_text(tree),)) if row[1] not in known]
        if left := [row for row in doubted if has_left(row[1])]:
            self._write([("DELETE FROM job WHERE tree = ? AND job = ?", left)])

    def rebuild(self, rows):
        """Replace the whole index by these rows, in one commit: readers see the old one or the new one."""
        if done := self._write([("DELETE FROM job", [()]), (PUT, rows)]):
            self.fresh = False
        return done

    def refuse_once(self, tree, name, reason):
        """Return True the first time that this name is refused in this tree, so that it is told once."""
        if self._rows("SELECT 1 FROM refused WHERE tree = ? AND name = ?", _row((tree, name))):
            return False  # a listing tells the same names again and again: no commit for that
        row = (tree, name, reason, self.clock())
        return self._write([("INSERT OR IGNORE INTO refused (tree, name, reason, at) VALUES (?,?,?,?)", [row])])

    def prune(self, before):
        """Forget history and refusals older than `before` (seconds since 1970), PRUNE_ROWS lines at most; return how many went."""
        old = f"DELETE FROM history WHERE id IN (SELECT id FROM history WHERE at < ? ORDER BY at LIMIT {PRUNE_ROWS})"
        changes = self.db.total_changes
        self._write([(old, [(before,)]), ("DELETE FROM refused WHERE at < ?", [(before,)])])
        return max(0, self.db.total_changes - changes)

    # Opening, and what can go wrong

    def _open(self):
        """Open the file, or put aside what cannot be used and make a new one; with no place for a file, use memory."""
        os.makedirs(os.path.dirname(self.path) or ".", exist_ok=True)
        for _ in range(2):
            try:
                self.db, self.inode = self._open_file(), _inode(self.path)
                return
            except (Unusable, sqlite3.Error) as e:
                if not isinstance(e, Unusable) and e.sqlite_errorcode & 0xFF not in UNUSABLE:
                    break
                self._set_aside("damaged" if isinstance(e, sqlite3.Error) else str(e))
        log.error("%s: cannot be opened; the journal is kept in memory until the next start", self.path)
        self.db, self.inode, self.fresh = _connect("file::memory:"), None, True
        self._create(self.db)

    def _open_file(self):
        with contextlib.ExitStack() as stack:
            db = _connect(f"file:{urllib.parse.quote(self.path)}")
            stack.callback(db.close)
            if not db.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]:
                self._create(db)
            _check(db)
            db.execute("PRAGMA journal_mode=WAL")
            db.execute("PRAGMA synchronous=OFF")  # it is an index; waiting for the disk would buy nothing
            db.execute(f"PRAGMA cache_size=-{CACHE_KB}")
            stack.pop_all()
            return db

    def _create(self, db):
        db.executescript(f"BEGIN; {TABLES} PRAGMA user_version={FORMAT}; COMMIT;")
        self.fresh = True

    def _set_aside(self, why):
        number = 1
        while os.path.lexists(aside := f"{self.path}.{why}.{number}"):
            number += 1
        for tail in "", "-wal", "-shm":
            with contextlib.suppress(FileNotFoundError):
                os.rename(self.path + tail, aside + tail)
        log.error("%s: is %s; renamed to %s, and a new one is made from the disk", self.path, why, aside)

    def _reopen(self, why=None):
        self.db.close()
        if why:
            self._set_aside(why)
        self._open()

    def _rows(self, sql, values=()):
        try:
            return self.db.execute(sql, values).fetchall()
        except sqlite3.Error as e:
            self._trouble(e)
            return []

    def _write(self, work):
        """Run [(sql, rows)] in one transaction; return whether it was committed. Never raises for what the disk does."""
        work = [(sql, [_row(row) for row in rows]) for sql, rows in work]
        if self.inode and _inode(self.path) != self.inode:
            log.warning("%s: has been removed; a new one is made from the disk", self.path)
            self._reopen()
        try:
            self._commit(work)
        except sqlite3.Error as e:
            self._trouble(e)
            return False
        self.told = ""
        return True

    def _commit(self, work):
        self.db.execute("BEGIN IMMEDIATE")
        try:
            for sql, rows in work:
                self.db.executemany(sql, rows)
            self.db.execute("COMMIT")
        except BaseException:
            with contextlib.suppress(sqlite3.Error):
                self.db.execute("ROLLBACK")
            raise

    def _trouble(self, error):
        if not hasattr(error, "sqlite_errorcode"):
            raise error  # not the disk's doing but a mistake of ours
        if error.sqlite_errorcode & 0xFF in UNUSABLE:
            self._reopen("damaged")
        elif self.told != str(error):
            self.told = str(error)
            log.error("%s: %s; nothing is lost but lines of history; `watchties rebuild` when it is over", self.path, error)


def _connect(uri):
    return sqlite3.connect(uri, uri=True, isolation_level=None, timeout=BUSY_MS / 1000)  # timeout: busy_timeout


def _check(db):
    """Raise Unusable or sqlite3.Error unless this is a journal of our format with the columns that we use."""
    if (version := db.execute("PRAGMA user_version").fetchone()[0]) != FORMAT:
        raise Unusable("newer" if version > FORMAT else "foreign")
    try:
        for columns, table in (JOB_COLUMNS, "job"), (EVENT_COLUMNS, "history"), ("tree, name, reason, at", "refused"):
            db.execute(f"SELECT {columns} FROM {table} LIMIT 1").fetchone()
    except sqlite3.OperationalError as e:
        raise Unusable("foreign") if e.sqlite_errorcode == sqlite3.SQLITE_ERROR else e


def _inode(path):
    try:
        return os.stat(path).st_ino
    except OSError:
        return None


def _text(text):
    """Return text that SQLite takes: a name that is not UTF-8 (lone surrogates) is written with backslashes."""
    return text if text.isascii() else text.encode("utf-8", "backslashreplace").decode()


def _row(row):
    return tuple(_text(value) if isinstance(value, str) else value for value in row)

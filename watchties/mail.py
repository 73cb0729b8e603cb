"""Sending letters: one SMTP connection for many, a sendmail program, or a folder; one letter's refusal is its own.

Knows: which refusals of a mail server are final (RFC 5321, 4.2.1), what the exit codes of a sendmail program mean (sysexits.h).
Must not know: what a letter says (letter.py), how a process is started (`run` is passed in), how often a try is repeated (`again`).

Whatever happens here, the job's state stays as it is: a letter ends as done, retry or failed, and that is all.
"""

import contextlib
import fcntl
import os
import shlex
import smtplib
import ssl
import stat
from pathlib import Path

from watchties.errors import Rejected, Transient, WatchtiesError
from watchties.letter import choose_address, compose, compose_notice  # noqa: F401  (one module for the hooks)
from watchties.model import Outcome, one_line

PORT, TLS_PORT = 25, 465  # 465: TLS from the first byte (RFC 8314)
TIMEOUT = 30  # seconds that a server may be silent
PROGRAM_TIMEOUT = 120  # seconds
REFUSED = {65, 67, 68}  # EX_DATAERR, EX_NOUSER, EX_NOHOST: about this letter. All else may pass, or be put right: msmtp ends
# with 69 where the server says 450, with 77 or 78 where its own configuration is wrong
HALF = ".new"  # the end of the name of a letter that is not whole yet
NOT_SET_UP = "no mail is set up: [mail] has neither server, sendmail nor folder"
TAIL_LINES, TAIL_BYTES = 15, 8192


def deliver(mail, letters, run=None, again=lambda call: call()):
    """Yield (letter, Outcome) for each letter, right after it was sent: write each down before you take the next.

    `mail` is the table of the configuration. `run` is shell.run, `again` retry.network. done: taken over by server, program or
    folder; retry: may pass by itself; failed: refused for good, in the server's words. Raises nothing for one letter's sake.
    """
    with contextlib.closing(_way(mail, run, again)) as way:
        for letter in letters:
            try:
                outcome = Outcome("done", way.send(letter))
            except WatchtiesError as e:
                outcome = Outcome("retry" if e.transient else "failed", one_line(e))
            yield letter, outcome


def _way(mail, run, again):
    if mail["folder"]:
        return Folder(mail["folder"])
    if mail["sendmail"]:
        return Sendmail(mail["sendmail"], run)
    return Smtp(mail, again) if mail["server"] else Nowhere()


class Nowhere:
    """No mail is set up: everything is done at once, and says so."""

    def send(self, letter):
        return NOT_SET_UP

    def close(self):
        pass


class Folder(Nowhere):
    """One file a letter; the same letter again overwrites its file."""

    def __init__(self, folder):
        self.folder = Path(folder).expanduser()

    def send(self, letter):
        """Write the letter whole under a hidden name, then rename it; return where it is."""
        path, hidden = self.folder / letter.name, self.folder / f".{letter.name}{HALF}"
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._sweep()
            with open(hidden, "wb") as file:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                file.write(letter.data())
                file.flush()
                os.fsync(file.fileno())
                os.replace(hidden, path)  # while it is locked: what nobody locks is swept
        except OSError as e:
            raise Transient(f"cannot write the mail {path}: {e.strerror or e}") from e
        return f"written to {path}"

    def _sweep(self):
        """Remove the halves that senders have left which were killed: nobody holds their locks. Another letter may never bear such a name."""
        for half in self.folder.glob(f".*.eml{HALF}"):
            with contextlib.suppress(OSError), open(half, "rb") as file:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                half.unlink()


class Sendmail(Nowhere):
    """A program that takes a message on standard input and its recipients as arguments."""

    def __init__(self, command, run):
        self.argv, self.run = shlex.split(command), run

    def send(self, letter):
        """Give the letter to the program; return "". Addresses never begin with a dash (letter.address)."""
        argv = [*self.argv, "-i", "-f", letter.sender, *letter.to, *letter.cc]
        try:
            result = self.run(argv, stdin=letter.data(), timeout=PROGRAM_TIMEOUT)
        except WatchtiesError as e:  # it is not there, say: no letter's fault
            raise Transient(str(e)) from e
        if result.code:
            said = one_line(result.err.strip() or result.out.strip())  # the whole: the server's words may stand in any line
            raise (Rejected if result.code in REFUSED else Transient)(f"{argv[0]} ended with {result.code}: {said}".rstrip(": "))
        return ""


class Smtp:
    """One connection for all letters. A server that cannot be reached is tried for the first letter only."""

    def __init__(self, mail, again):
        self.mail, self.again = mail, again
        self.where = f"{mail['server']}:{mail['port'] or PORT}"
        self.server, self.down = None, ""

    def send(self, letter):
        """Send one letter; return what a reader of the log should know, or ""; raise Transient or Rejected."""
        if self.down:
            raise Transient(self.down)
        try:
            if self.server:
                with contextlib.suppress(Gone):  # many servers close after so many letters; this one has not been taken yet
                    return self._transact(letter)
            self.again(self._open)
            return self._transact(letter)
        except Gone as e:
            self.down = str(e)
            raise

    def ask(self, sender, address):
        """Raise Transient or Rejected if the server would take no mail from `sender` to `address` (None: of any); send none."""
        with contextlib.closing(self):
            self._open()
            try:
                self._check(self.server.mail(sender), sender)
                if address:
                    self._check(self.server.rcpt(address), address)
            except OSError as e:
                raise Gone(f"mail server {self.where}: {_words_of(e)}") from e

    def _open(self):
        """Connect, with TLS and a login as configured. Refused as a whole is never a letter's fault: raise Gone."""
        self._drop()
        password = _password(self.mail) if self.mail["user"] else ""
        host, port = self.mail["server"], self.mail["port"] or PORT
        try:
            if port == TLS_PORT:
                self.server = smtplib.SMTP_SSL(host, port, timeout=TIMEOUT, context=ssl.create_default_context())
            else:
                self.server = smtplib.SMTP(host, port, timeout=TIMEOUT)
                if self.mail["starttls"]:
                    self.server.starttls(context=ssl.create_default_context())
            if self.mail["user"]:
                self.server.login(self.mail["user"], password)
            self.server.ehlo_or_helo_if_needed()
        except OSError as e:  # smtplib's errors are OSErrors, and so are a refused connection, a timeout and a bad certificate
            self._drop()
            raise Gone(f"mail server {self.where}: {_words_of(e)}") from e

    def _transact(self, letter):
        """Run MAIL, RCPT for all, DATA. No DATA unless every temporary refusal is absent and the user is accepted."""
        if letter.international and not self.server.has_extn("smtputf8"):
            raise Rejected(f"mail server {self.where} takes no address like {', '.join(letter.to)} (no SMTPUTF8)")
        try:
            self._check(self.server.mail(letter.sender, ["SMTPUTF8"] if letter.international else []), letter.sender)
            for address in letter.to:
                self._check(self.server.rcpt(address), address)
            notes = [note for address in letter.cc if (note := self._copy_refused(address))]
        except OSError as e:
            raise Gone(f"mail server {self.where}: {_words_of(e)}") from e
        return self._data(letter, notes)

    def _data(self, letter, notes):
        try:
            self._check(self.server.data(letter.data()), letter.to[0])
        except smtplib.SMTPDataError as e:
            self._check((e.smtp_code, e.smtp_error), letter.to[0])
        except OSError as e:  # it may have been taken all the same: not again in this run
            self._drop()
            raise Transient(f"mail server {self.where}: {_words_of(e)}") from e
        return "; ".join(notes)

    def _copy_refused(self, address):
        """Return the server's words if it takes no copy for an address of `cc`: the user gets the letter all the same."""
        try:
            self._check(self.server.rcpt(address), address, reset=False)
        except Rejected as e:
            return f"no copy sent: {e}"
        return ""

    def _check(self, reply, address, reset=True):
        """Pass a good reply (250, 251); raise Gone (421), Transient (4xx) or Rejected (5xx) with the server's words."""
        code, words = reply
        if 200 <= code < 300:
            return
        text = f"mail server {self.where} refuses {address}: {code} {one_line(words.decode('utf-8', 'replace'))}"
        if code in (-1, 421):
            raise Gone(text)
        if reset or code < 500:
            with contextlib.suppress(OSError):
                self.server.rset()
        raise (Rejected if code >= 500 else Transient)(text)

    def close(self):
        """End the connection, politely unless the server has gone."""
        if self.server and not self.down:
            with contextlib.suppress(OSError):
                self.server.quit()
        self._drop()

    def _drop(self):
        server, self.server = self.server, None
        if server:
            server.close()


class Gone(Transient):
    """The mail server is not there, or has closed the connection before it took the letter."""


def _words_of(error):
    """Return the server's own words, or the system's, in one line."""
    code, words = getattr(error, "smtp_code", ""), getattr(error, "smtp_error", b"")
    words = words.decode("utf-8", "replace") if isinstance(words, bytes) else words
    return one_line(f"{code} {words}" if code else error.strerror or error) or type(error).__name__


def _password(mail):
    """Return the content of `password_file`; raise Gone if it is missing or open to others: no letter's fault."""
    try:
        path = Path(mail["password_file"]).expanduser()
        if path.stat().st_mode & 0o007:
            raise Gone(f"{path}: everybody may read it; run: chmod 600 {shlex.quote(str(path))}")
        return path.read_text(encoding="utf-8").strip("\r\n")
    except TypeError as e:
        raise Gone("[mail] user is set but password_file is not") from e
    except (OSError, ValueError) as e:
        raise Gone(f"[mail] password_file: {e}") from e


# A job's own files, for a letter. Its directory is the user's: nothing in it is followed out of it, and nothing there can make us wait.


def read_end(directory, name, limit):
    """Return the last `limit` bytes of a regular file in a job's directory, None if there is none (or it is a link, a pipe...)."""
    *parents, last = Path(name).parts or ("",)
    flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    with contextlib.ExitStack() as stack:
        at = None
        try:
            for part, extra in ((directory, os.O_DIRECTORY), *((p, os.O_DIRECTORY) for p in parents), (last, 0)):
                if at is not None and part in ("..", "/"):
                    return None
                at = os.open(part, flags | extra, dir_fd=at)
                stack.callback(os.close, at)
            if not stat.S_ISREG((found := os.fstat(at)).st_mode):
                return None
            return os.pread(at, limit, max(0, found.st_size - limit))
        except (OSError, ValueError):
            return None


def error_tail(directory):
    """Return the last lines of the job's remote_ties_run.err, [] if there are none."""
    return (read_end(directory, "remote_ties_run.err", TAIL_BYTES) or b"").decode("utf-8", "replace").rstrip().splitlines()[-TAIL_LINES:]


def own_address(mail, directory):
    """Return the text of the job's own address file if `[mail] email_file` names one and it is there, else None."""
    data = read_end(directory, mail["email_file"], 1024) if mail["email_file"] else None
    return None if data is None else data.decode("utf-8", "replace")

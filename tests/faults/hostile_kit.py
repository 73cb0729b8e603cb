"""What the tests of hostile input share: nasty texts, things that nobody may touch, directories that flip.

Knows: what a stranger might write, and how it is seen that it led nowhere.
Must not know: what watchties does about any of it.
"""

import ctypes
import hashlib
import multiprocessing
import os
import re
import time
from pathlib import Path

FRAGMENTS = [
    "$(touch canary)", "`touch canary`", ";touch canary;", "|touch canary", "&& touch canary", "\ntouch canary\n", "'; touch canary; '",
    '"; touch canary; "', "-e", "--rsync-path=touch canary", "--delete", "-o", "-rf", "--", "-", "{}", "%s", "%n%n", "%(x)s", "{job}", "{0.__class__}",
    "%", "\\", "\\n", "\\#012", "\\x1b", "#", ";", ":", "::", "host:path", "rsync://h/m", "*", "**", "?", "[a-z]", "[!", "~", "~root", "$HOME", "..",
    ".", "...", "../..", "/", "//", "/etc/passwd", " ", "  ", "\t", "\r", "\n", "\0", "\x1b[2J", "\x07", "\x7f", "\x85", "\xa0", "\u2028",
    "\u202e", "\ufeff", "\u0301", "é", "字", "😀", "\udcff", "\udc80", "[/]", "[red]", "[/red]", "<script>", "&amp;", "\"><b>", "a", "b1", "0", "PENDING",
    "DONE", "FAILED", "SUBMITTED", "CANCEL", ".watchties", ".watchties.partial", "record.json", "command", "=", "token=", "state=DONE", "key=value",
    ",", "x" * 60, "日" * 30, "nan", "inf", "-1", "1e999", "9" * 40, "null", "true", "[]", "{", "}", "'", '"', '"""', "main", "ann/e1", "^",
]  # fmt: skip


def nasty(draw, most=5):
    """Return a text that a stranger might write."""
    kind = draw.random()
    if kind < 0.1:
        return "".join(chr(draw.choice([draw.randrange(1, 256), draw.randrange(1, 0xD800)])) for _ in range(draw.randrange(0, 40)))
    if kind < 0.15:
        return os.fsdecode(draw.randbytes(draw.randrange(0, 60)))
    return "".join(draw.choice(FRAGMENTS) for _ in range(draw.randrange(1, most + 1)))


def file_name(draw):
    """Return a name that a file system takes, whatever else may be said of it."""
    while True:
        raw = os.fsencode(nasty(draw, 4)).replace(b"/", b"").replace(b"\0", b"")[:250]
        if raw not in (b"", b".", b".."):
            return os.fsdecode(raw)


def spoilt(draw, text):
    """Return a text that is right in most, and wrong somewhere: cut, doubled, with something put in."""
    for _ in range(draw.randrange(0, 4)):
        at, to = sorted(draw.randrange(len(text) + 1) for _ in range(2))
        text = draw.choice(
            [
                text[:at] + text[to:],
                text[:at] + nasty(draw, 2) + text[at:],
                text[:to] + text[at:],
                text[:at] + nasty(draw, 1) + text[to:],
            ]
        )
    return text


# ---- outside the trees ----

SECRET = "the-secret-that-stays-outside"


class Outside:
    """Files and directories beside the trees, which nobody may read into a job, change, or add to."""

    def __init__(self, base):
        self.base = Path(base)
        self.dir = self.base / "outside"
        for path in (
            "secret",
            "e1/secret",
            "e1/in.txt",
            "e1/out.txt",
            "e1/command",
            "e1/DONE",
            "e1/PENDING",
            "plots/x",
            "id",
            "record.json",
            "reply",
            "exit",
        ):
            (self.dir / path).parent.mkdir(parents=True, exist_ok=True)
            (self.dir / path).write_text(f"{SECRET} {path}\n")
        self.before = self.seen()

    def seen(self):
        """Return path -> (mode, mtime, digest) of everything there."""
        found = {}
        for path in [self.dir, *sorted(self.dir.rglob("*"))]:
            status = path.lstat()
            content = hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() and not path.is_symlink() else ""
            found[str(path)] = (status.st_mode, status.st_uid, status.st_mtime_ns, content)
        return found

    def escapes(self, *trees):
        """Return what has got out or in: a changed canary, a secret in a tree, a file that only a command could have made."""
        now = self.seen()
        wrong = [f"changed: {path}" for path in sorted(now.keys() | self.before.keys()) if now.get(path) != self.before.get(path)]
        for tree in trees:
            for folder, _, files in os.walk(os.fsencode(tree)):  # which follows no link
                wrong += [
                    f"read: {os.path.join(folder, name)!r}" for name in files if holds(os.path.join(folder, name), SECRET.encode())
                ]
        places = [self.base, Path.cwd(), Path.home(), Path("/")]
        wrong += [f"run: {place}/canary" for place in places[1:] if (place / "canary").exists()]
        wrong += [f"run: {folder!r}" for folder, _, files in os.walk(os.fsencode(self.base)) if b"canary" in files]
        return wrong


def holds(path, words):
    """Return whether a regular file holds some bytes; links and pipes hold nothing, a huge file is looked into at its beginning."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError:
        return False
    try:
        return words in os.read(fd, 1 << 20)
    except OSError:
        return False
    finally:
        os.close(fd)


# ---- a directory that becomes a link, and a directory again ----

EXCHANGE, AT_FDCWD, SYS_renameat2 = 2, -100, 316 if os.uname().machine == "x86_64" else 276


class Swapper:
    """A process that exchanges each of some directories with a link, again and again, as fast as it can (renameat2(2))."""

    def __init__(self, pairs, uid=None):
        self.pairs, self.uid = [(os.fsencode(a), os.fsencode(b)) for a, b in pairs], uid
        self.flips, self.stop = multiprocessing.get_context("fork").Value("L", 0), multiprocessing.get_context("fork").Event()

    def __enter__(self):
        self.process = multiprocessing.get_context("fork").Process(target=self._run, daemon=True)
        self.process.start()
        return self

    def __exit__(self, *_):
        self.stop.set()
        self.process.join(20)

    def _run(self):
        if self.uid is not None:
            os.setgroups([])
            os.setgid(self.uid)
            os.setuid(self.uid)
        libc = ctypes.CDLL(None, use_errno=True)
        while not self.stop.is_set():
            for a, b in self.pairs:
                if libc.syscall(SYS_renameat2, AT_FDCWD, a, AT_FDCWD, b, EXCHANGE) == 0:
                    self.flips.value += 1
            time.sleep(0.0005)  # or the two sides of a check never meet the same thing for long enough
        for a, b in self.pairs:
            if os.path.islink(a):
                libc.syscall(SYS_renameat2, AT_FDCWD, a, AT_FDCWD, b, EXCHANGE)


# ---- what the daemon says ----


def clean_words(site):
    """Return what is wrong with what daemon, hooks and `status` have said: a traceback, a control character."""
    wrong = []
    for path in [site.base / "daemon.out", *sorted((site.state / "log").glob("*.log"))]:
        text = path.read_text(errors="replace")
        wrong += [f"{path.name}: a traceback\n{text[text.index('Traceback') - 500 :][:3000]}"] if "Traceback" in text else []
        wrong += [
            f"{path.name}: control characters in {line!r}"
            for line in text.split("\n")
            if re.search("[\x00-\x08\x0b-\x1f\x7f]", line)
        ][:3]
    for words in ("status", "--all"), ("status", "--all", "--json"), ("stats",):
        done = site.watchties(*words, check=False)
        wrong += [f"{words} ended with {done.returncode}: {done.stderr[-500:]}"] if done.returncode else []
        wrong += [f"{words}: control characters"] if re.search("[\x00-\x08\x0b-\x1f\x7f]", done.stdout) else []
    return wrong

"""status --watch: an overview that is shown anew every second, until q or Ctrl-C.

Knows: terminals: one key at a time, another screen, and that all is as before at the end.
Must not know: what is shown (overview.py). It only reads, so the daemon does not notice.
"""

import contextlib
import os
import select
import shutil
import signal
import sys
import termios
import textwrap
import time
import tty

from watchties.cli.common import plural
from watchties.cli.overview import lines, shortened
from watchties.errors import UserError

EVERY = 1.0  # seconds between two looks
ENDS = b"qQ\x03\x04\x1b"  # q, Ctrl-C and Ctrl-D where the terminal sends them as keys, Esc


def watch(look):
    """Show what look() returns, an Overview, until a key or a signal ends it. Raises UserError where there is no terminal."""
    if not sys.stdout.isatty():
        raise UserError("--watch needs a terminal; for a file or a pipe: watchties status, or with --json for a program")
    look()  # what is wrong is told before the screen changes
    from rich.live import Live

    before = signal.signal(signal.SIGTERM, _end), signal.signal(signal.SIGTSTP, signal.SIG_IGN)  # else the terminal would stay as it is
    try:
        with contextlib.suppress(KeyboardInterrupt), _single_keys() as keys, Live(auto_refresh=False, screen=True) as live:
            while True:
                live.update(screen(look), refresh=True)
                if _asked_to_end(keys, EVERY):
                    return
    finally:
        signal.signal(signal.SIGTERM, before[0])
        signal.signal(signal.SIGTSTP, before[1])


def _end(number, frame):
    raise SystemExit(128 + number)


@contextlib.contextmanager
def _single_keys():
    """Have keys come at once and unseen; give the descriptor, or None where no keyboard is."""
    if not sys.stdin.isatty():
        yield None
        return
    number = sys.stdin.fileno()
    before = termios.tcgetattr(number)
    try:
        tty.setcbreak(number)
        yield number
    finally:
        termios.tcsetattr(number, termios.TCSAFLUSH, before)


def _asked_to_end(keys, seconds):
    """Wait so long, or until a key asks for the end."""
    until = time.monotonic() + seconds
    while (left := until - time.monotonic()) > 0:
        if keys is None:
            time.sleep(left)
        elif select.select([keys], [], [], left)[0]:
            typed = os.read(keys, 1024)
            if not typed or typed[:1] in [bytes([end]) for end in ENDS if end != 0x1B] or typed == b"\x1b":
                return True  # an arrow key begins with Esc, too, and goes on
    return False


def screen(look):
    """Return what fits on the screen now; an error takes the table's place, and may pass."""
    from rich.text import Text

    size = shutil.get_terminal_size()
    foot = "q ends it"
    try:
        overview = look()
        head, rows = overview.head(), overview.rows
        body = "\n".join(lines(rows, size.columns, cut=True)).split("\n") if rows else []
    except UserError as error:
        head, rows, body = [str(error)], [], []
    head = [part for line in [f"{time.strftime('%H:%M:%S')}  {head[0]}", *head[1:]] for part in textwrap.wrap(line, size.columns)]
    room = max(1, size.lines - len(head) - 2)
    if len(body) > room:
        foot = f"{plural(len(rows), 'job')}, as many as fit; {foot}"
    text = [shortened(line, size.columns) for line in [*head, "", *body[:room]]][: size.lines - 1]
    text += [""] * (size.lines - 1 - len(text))
    return Text("\n".join([*text, foot]), no_wrap=True, overflow="crop")

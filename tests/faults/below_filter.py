"""A program that goes below a filter of system calls, hands over what the kernel asks through, and becomes another program.

Knows: the numbers of calls, the kernel's filters (seccomp(2)).
Must not know: what is done about a call that is asked about (calls.py).

    python below_filter.py SOCKET NAMES PROGRAM [ARGUMENT ...]
"""

import ctypes
import errno
import fcntl
import os
import socket
import struct
import sys
import threading

# number of a call on x86-64 -> what it is called here, and what its arguments are: p a path, d a directory's descriptor for the
# path after it, f a descriptor, i a number, - nothing of interest
CALLS = {
    82: ("rename", "pp"), 264: ("rename", "dpdp"), 316: ("rename", "dpdp"), 86: ("link", "pp"), 265: ("link", "dpdp"),
    88: ("symlink", "-p"), 266: ("symlink", "-dp"), 87: ("unlink", "p"), 263: ("unlink", "dp"), 84: ("rmdir", "p"),
    83: ("mkdir", "p"), 258: ("mkdir", "dp"), 74: ("fsync", "f"), 75: ("fdatasync", "f"), 306: ("syncfs", "f"), 162: ("sync", ""),
    2: ("create", "p"), 85: ("create", "p"), 257: ("create", "dp"), 76: ("truncate", "p"), 77: ("truncate", "f"),
    1: ("write", "f-i"), 18: ("write", "f-i"), 20: ("write", "f--"), 296: ("write", "f--"), 328: ("write", "f--"),
    40: ("write", "f--"), 326: ("write", "--f"), 285: ("write", "f--"),
    42: ("connect", "f"), 44: ("send", "f-i"), 46: ("send", "f"), 307: ("send", "f"), 45: ("receive", "f"), 47: ("receive", "f"),
    43: ("accept", "f"), 288: ("accept", "f"), 0: ("read", "f-i"), 19: ("read", "f"),
    90: ("mode", "p"), 91: ("mode", "f"), 268: ("mode", "dp"), 280: ("times", "dp"),
}  # fmt: skip
NAMES = frozenset({"rename", "link", "symlink", "unlink", "rmdir", "mkdir", "create", "truncate"})
SYNCS = frozenset({"fsync", "fdatasync", "syncfs", "sync"})
LASTING = NAMES | SYNCS | {"write"}
NETWORK = frozenset({"connect", "accept", "send", "receive", "read", "write"})
OPENS = {2: 1, 257: 2}  # number -> which argument has the flags: only such as may make or empty a file are held
MAY_MAKE = os.O_CREAT | os.O_TRUNC

# from linux/seccomp.h, linux/filter.h, asm/unistd_64.h
SECCOMP, PRCTL_NO_NEW_PRIVS, SET_FILTER, NEW_LISTENER = 317, 38, 1, 1 << 3
ALLOW, ASK, ARCH_X86_64 = 0x7FFF0000, 0x7FC00000, 0xC000003E
LOAD, EQUAL, ANY_BIT, RETURN = 0x20, 0x15, 0x45, 0x06

_libc = ctypes.CDLL(None, use_errno=True)


def filter_of(names):
    """Return the instructions of a filter that asks about these calls, and how many they are."""
    told = [number for number, (name, _) in CALLS.items() if name in names]
    rows = [(LOAD, 0, 0, 4), (EQUAL, 1, 0, ARCH_X86_64), (RETURN, 0, 0, ALLOW), (LOAD, 0, 0, 0)]
    for number in told:
        if number in OPENS:
            rows += [(EQUAL, 0, 4, number), (LOAD, 0, 0, 16 + 8 * OPENS[number]), (ANY_BIT, 0, 1, MAY_MAKE)]
            rows += [(RETURN, 0, 0, ASK), (RETURN, 0, 0, ALLOW)]
        else:
            rows += [(EQUAL, 0, 1, number), (RETURN, 0, 0, ASK)]
    rows.append((RETURN, 0, 0, ALLOW))
    return b"".join(struct.pack("HBBI", *row) for row in rows), len(rows)


def install(names):
    """Put this thread, and what it becomes and starts, below the filter; return the descriptor that the kernel asks through."""
    code, count = filter_of(names)
    held = ctypes.create_string_buffer(code)

    class Program(ctypes.Structure):
        _fields_ = [("len", ctypes.c_ushort), ("filter", ctypes.c_void_p)]

    program = Program(count, ctypes.addressof(held))
    _libc.prctl(PRCTL_NO_NEW_PRIVS, 1, 0, 0, 0)
    listener = _libc.syscall(SECCOMP, SET_FILTER, NEW_LISTENER, ctypes.byref(program))
    if listener < 0:
        code = ctypes.get_errno()
        raise OSError(code, f"seccomp with a listener: {errno.errorcode.get(code)} {os.strerror(code)}")
    return listener


def main(number, names, *argv):
    """Go below the filter, hand its descriptor over by the socket `number`, and become `argv`.

    Another thread hands it over: it is not below the filter, so nobody has to answer before somebody can.
    """
    installed, handed, found = threading.Event(), threading.Event(), []

    def hand_over():
        installed.wait()
        socket.send_fds(channel, [b"ok"], found)
        handed.set()

    if number == "-":
        try:
            install(names.split(","))
        except OSError as error:
            print(error, file=sys.stderr)
        os._exit(0)
    channel = socket.socket(fileno=int(number))
    fcntl.fcntl(channel, fcntl.F_SETFD, fcntl.FD_CLOEXEC)
    threading.Thread(target=hand_over, daemon=True).start()
    found.append(install(names.split(",")))
    installed.set()
    handed.wait()
    os.execvp(argv[0], argv)


if __name__ == "__main__":
    main(*sys.argv[1:])

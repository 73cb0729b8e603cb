#!/usr/bin/env python3
"""Make cables longer: delay.py MS HOST... keeps every packet to and from these hosts back for MS milliseconds, until SIGTERM.

Runs in the network between the hosts. A stand-in for netem, which many kernels do not have: each host's cable is
taken off the bridge and this program carries the packets in between. A packet between two hosts that are both named
is kept back twice each way, so a round trip takes 4 * MS longer.
"""

import collections
import select
import signal
import socket
import subprocess
import sys
import time

ALL = 3  # ETH_P_ALL (packet(7))
OUTGOING = 4  # PACKET_OUTGOING: what this program has sent itself
SOL_PACKET, VNET_HDR = 263, 15  # packets come with what their sender's card was to do with them: checksums, and cutting to size
LARGEST = 70_000  # bytes; they are cut to size only where a real card would


def ip(*words):
    subprocess.run(["ip", *words], check=True)


def tap(name):
    """Return a socket that takes and gives the raw packets of a network device."""
    taken = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(ALL))
    taken.setsockopt(SOL_PACKET, VNET_HDR, 1)
    taken.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 8 << 20)
    taken.bind((name, 0))
    taken.setblocking(False)
    return taken


def splice(host):
    """Take a host's cable off the bridge and put one of ours in its place; return the two ends that are to be joined."""
    ours, bridged = f"d-{host}", f"b-{host}"
    ip("link", "add", ours, "type", "veth", "peer", "name", bridged)
    ip("link", "set", bridged, "master", "br0", "up")
    ip("link", "set", ours, "promisc", "on", "up")
    ip("link", "set", f"p-{host}", "nomaster")
    ip("link", "set", f"p-{host}", "promisc", "on")
    return tap(f"p-{host}"), tap(ours)


def unsplice(host):
    subprocess.run(["ip", "link", "del", f"d-{host}"], check=False)
    subprocess.run(["ip", "link", "set", f"p-{host}", "master", "br0"], check=False)


def take(source, target, due, waiting):
    """Put all that has come at one end into the queue for the other."""
    while True:
        try:
            packet, address = source.recvfrom(LARGEST)
        except BlockingIOError:
            return
        except OSError:  # the cable was pulled; that is told once
            continue
        if address[2] != OUTGOING:
            waiting.append((due, packet, target))


def carry(delay, other):
    """Carry packets for ever. other: socket -> the socket at the other end. One delay for all: first in, first out."""
    poll, by_number, waiting = select.poll(), {}, collections.deque()
    for end in other:
        poll.register(end, select.POLLIN)
        by_number[end.fileno()] = end
    while True:
        pause = max(0.0, waiting[0][0] - time.monotonic()) * 1000 if waiting else None
        for number, _ in poll.poll(pause):
            take(by_number[number], other[by_number[number]], time.monotonic() + delay, waiting)
        while waiting and waiting[0][0] <= time.monotonic():
            _, packet, target = waiting.popleft()
            try:
                target.send(packet)
            except OSError:  # pulled or full: a packet is lost, as on any cable
                pass


def stop(*_):
    raise SystemExit


def main(ms, *hosts):
    signal.signal(signal.SIGTERM, stop)
    signal.signal(signal.SIGINT, stop)
    other, spliced = {}, []
    try:
        for host in hosts:
            spliced.append(host)
            a, b = splice(host)
            other |= {a: b, b: a}
        print("up", flush=True)
        carry(float(ms) / 1000, other)
    finally:
        for host in spliced:
            unsplice(host)


if __name__ == "__main__":
    main(*sys.argv[1:])

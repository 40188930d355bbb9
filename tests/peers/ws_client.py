"""A WebSocket client made of Python's `websockets`, to try the proxy with another maker's library.

    python3 ws_client.py COMMAND URL [ARGUMENT..]

URL is where a server behind the proxy echoes every message. Exits with 0 only if all held; else it
prints what did not, and exits with 1.

    echo               text and binary of many sizes, and fragments
    ping               each ping is answered by a pong with its payload
    close CODE REASON  our Close is answered with the same code and reason
    deflate            permessage-deflate is agreed on, and compressed messages come back
    many N PREFIX      opens N connections, with `room=PREFIX0` and so on, and prints
                       {"ROOM": FIRST MESSAGE, ..} while all are open
"""

import json
import os
import signal
import sys
from contextlib import ExitStack

from websockets.exceptions import ConnectionClosed
from websockets.sync.client import connect

DEADLINE_SECONDS = 60
SIZES = [0, 1, 125, 126, 65_535, 65_536, 1 << 20, 1 << 24]


def opened(url, compression):
    """Opens a connection, past any proxy that the environment names, for messages of any size."""
    return connect(url, compression=compression, max_size=None, proxy=None)


def echoes(connection, message):
    """Sends a message (a list is sent in fragments) and expects it back."""
    whole = message
    if isinstance(message, list):
        whole = type(message[0])().join(message)
    connection.send(message)
    back = connection.recv()
    what = f"{type(whole).__name__} of {len(whole)}"
    check(type(back) is type(whole), f"{what} came back as {type(back).__name__}")
    check(back == whole, f"{what} came back changed")


def check(holds, what):
    """Ends the run if something does not hold."""
    if not holds:
        raise AssertionError(what)


def echo(url):
    with opened(url, compression=None) as connection:
        check(not connection.protocol.extensions, "an extension that nobody offered")
        for size in SIZES:
            echoes(connection, "é" * (size // 2) + "x" * (size % 2))
            echoes(connection, os.urandom(size))
        echoes(connection, ["one ", "", "two ", "three"])
        echoes(connection, [os.urandom(10), os.urandom(70_000), b""])


def ping(url):
    with opened(url, compression=None) as connection:
        for payload in (b"", b"hello", b"x" * 125):
            answered = connection.ping(payload)
            check(answered.wait(10), f"no pong to a ping of {len(payload)} bytes")


def close(url, code, reason=""):
    with opened(url, compression=None) as connection:
        connection.close(int(code), reason)
        try:
            connection.recv(timeout=10)
            raise AssertionError("a message behind our Close")
        except ConnectionClosed as closed:
            check(closed.rcvd is not None, "no answer to our Close")
            check(closed.rcvd.code == int(code), f"answered with code {closed.rcvd.code}")
            check(closed.rcvd.reason in (reason, ""), f"answered with {closed.rcvd.reason!r}")


def deflate(url):
    with opened(url, compression="deflate") as connection:
        names = [extension.name for extension in connection.protocol.extensions]
        check(names == ["permessage-deflate"], f"extensions are {names}")
        message = os.urandom(8_192)
        echoes(connection, "compress me " * 10_000)
        # Said twice, so that the second is told by reference to the first.
        echoes(connection, message)
        echoes(connection, message)
        echoes(connection, "")
        echoes(connection, ["compressed " * 50, "in ", "fragments " * 500])


def many(url, count, prefix):
    with ExitStack() as connections:
        first = {}
        for index in range(int(count)):
            room = f"{prefix}{index}"
            connection = opened(f"{url}?room={room}", compression=None)
            first[room] = connections.enter_context(connection).recv(timeout=10)
        print(json.dumps(first))


COMMANDS = {"echo": echo, "ping": ping, "close": close, "deflate": deflate, "many": many}


def main():
    if len(sys.argv) < 3 or sys.argv[1] not in COMMANDS:
        sys.exit(__doc__)
    signal.alarm(DEADLINE_SECONDS)
    try:
        COMMANDS[sys.argv[1]](*sys.argv[2:])
    except Exception as error:  # whatever it is, it did not hold
        print(f"{sys.argv[1]}: {type(error).__name__}: {error}", file=sys.stderr)
        sys.exit(1)


if __name__ == "__main__":
    main()

"""Load of our own: ``python getter.py PORT REQUESTS CONNECTIONS SECONDS``.

Every connection asks, waits for the whole answer, and asks again. ``REQUESTS`` is a file with a
path and perhaps an entity tag a line. Prints one line of JSON; the standard library and uvloop.
"""

from __future__ import annotations

import asyncio
import json
import random
import sys
import time
from pathlib import Path

import uvloop

SEED = 20_260


class Connection(asyncio.Protocol):
    """One connection; ``waits`` are its answered requests, in seconds each."""

    def __init__(self, requests: list[bytes], until: float, ended: asyncio.Future[None]) -> None:
        self.waits: list[float] = []
        self.errors = 0
        self._requests, self._until, self._ended = requests, until, ended
        self._received = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport
        self._ask()

    def data_received(self, data: bytes) -> None:
        self._received += data
        head, complete, body = self._received.partition(b"\r\n\r\n")
        if not complete or len(body) < _length(head):
            return
        now = time.perf_counter()
        if head[9:12] in (b"200", b"304"):
            self.waits.append(now - self._asked)
        else:
            self.errors += 1
        self._received = b""
        if now < self._until:
            self._ask()
        else:
            self._transport.close()

    def connection_lost(self, error: Exception | None) -> None:
        if time.perf_counter() < self._until or self._received:
            self.errors += 1
        if not self._ended.done():
            self._ended.set_result(None)

    def _ask(self) -> None:
        self._asked = time.perf_counter()
        self._transport.write(random.choice(self._requests))


def _length(head: bytes) -> int:
    """Of the body that follows; none is one that has none."""
    _, found, rest = head.lower().partition(b"\r\ncontent-length:")
    return int(rest.split(b"\r\n", 1)[0]) if found else 0


async def main(port: int, path: Path, count: int, seconds: float) -> None:
    """Open them all, then say how it went."""
    random.seed(SEED)
    loop, requests = asyncio.get_running_loop(), requests_of(path)
    began = time.perf_counter()
    ends = [loop.create_future() for _ in range(count)]
    opened = await asyncio.gather(
        *(
            loop.create_connection(
                lambda end=end: Connection(requests, began + seconds, end), "127.0.0.1", port
            )
            for end in ends
        ),
        return_exceptions=True,
    )
    connections = [each[1] for each in opened if not isinstance(each, BaseException)]
    refused = count - len(connections)
    waiting = [end for end, each in zip(ends, opened, strict=True) if isinstance(each, tuple)]
    _, unanswered = await asyncio.wait(waiting, timeout=seconds + 10) if waiting else ((), ())
    took = time.perf_counter() - began
    waits = sorted(wait for each in connections for wait in each.waits)
    found = {
        "requests": len(waits),
        "seconds": took,
        "errors": refused + len(unanswered) + sum(each.errors for each in connections),
        "unserved": refused + sum(not each.waits for each in connections),
        "p50": waits[len(waits) // 2] * 1e6 if waits else 0,
        "p99": waits[len(waits) * 99 // 100] * 1e6 if waits else 0,
    }
    print(json.dumps(found), flush=True)


def requests_of(path: Path) -> list[bytes]:
    """As they are sent."""
    found = []
    for line in path.read_text().splitlines():
        asked, _, tag = line.partition(" ")
        condition = f"If-None-Match: {tag}\r\n" if tag else ""
        found.append(f"GET {asked} HTTP/1.1\r\nHost: 127.0.0.1\r\n{condition}\r\n".encode())
    return found


if __name__ == "__main__":
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(main(int(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]), float(sys.argv[4])))

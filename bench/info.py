"""What a server says of itself: processor time, commands, bytes, memory."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Self

import redis

SCRIPTS = ("cmdstat_evalsha", "cmdstat_eval", "cmdstat_fcall")
"""What our cache sends. Commands that a script runs are counted by the server too, under their
own names, and cost no round trip."""


@dataclass(frozen=True)
class Spent:
    """What a server had spent when it was looked at; the difference of two looks."""

    cpu: float
    """Microseconds of processor time, its main thread and all others."""
    scripts: int
    """Scripts called."""
    inside: float
    """Microseconds inside of scripts, by the server's own clock."""
    received: int
    sent: int
    """Bytes of everything that clients sent and were sent."""
    memory: int
    """Bytes in use for data and bookkeeping."""

    def __sub__(self, other: Self) -> Spent:
        return Spent(
            *(getattr(self, name) - getattr(other, name) for name in Spent.__dataclass_fields__)
        )


class Meter:
    """Looks at one server, on a connection of its own."""

    def __init__(self, dsn: str) -> None:
        self._client = redis.Redis.from_url(dsn)

    def look(self) -> Spent:
        """Everything so far."""
        said = self._client.info("everything")
        scripts = [said[name] for name in SCRIPTS if name in said]
        return Spent(
            cpu=(said["used_cpu_user"] + said["used_cpu_sys"]) * 1e6,
            scripts=sum(each["calls"] for each in scripts),
            inside=sum(each["usec"] for each in scripts),
            received=said["total_net_input_bytes"],
            sent=said["total_net_output_bytes"],
            memory=said["used_memory"],
        )

    def close(self) -> None:
        """Disconnect."""
        self._client.close()


_MARK = "what is counted begins or ends"


@contextmanager
def counted(dsn: str) -> Iterator[list[str]]:
    """Holds, after the block, the name of every command that the server was sent during it.

    By MONITOR. Left out are what a script runs inside the server, which nobody sent, and the
    INFO with which every client asks now and then, busy or not, whether it is the same server.
    """
    sent: list[str] = []
    with redis.Redis.from_url(dsn) as client, client.monitor() as monitor:

        def to_mark() -> Iterator[str]:
            client.echo(_MARK)
            while _MARK not in (told := monitor.next_command())["command"]:
                name = told["command"].split(" ", 1)[0]
                if told["client_type"] != "lua" and name != "INFO":
                    yield name

        list(to_mark())  # what this client says of itself when it connects
        yield sent
        sent += to_mark()

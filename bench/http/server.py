"""The server process of a subject, and what it costs: processor time and memory, from /proc."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from threading import Timer
from typing import Any
from uuid import UUID

from bench.peers import WorkerFailed, surroundings

_HERE = Path(__file__).parent
_START_SECONDS = 30.0
_STOP_SECONDS = 10.0
_TICK_SECONDS = 1 / os.sysconf("SC_CLK_TCK")


class Server:
    """One that serves on ``port``."""

    def __init__(self, name: str, process: subprocess.Popen[str]) -> None:
        self.name = name
        self.pid = process.pid
        assert process.stdout is not None
        alarm = Timer(_START_SECONDS, process.kill)
        alarm.daemon = True
        alarm.start()
        # what a library prints of its own is not the port
        ports = (line for line in process.stdout if line.startswith("port "))
        line = next(ports, "")
        alarm.cancel()
        if not line:
            raise WorkerFailed(f"{name} does not serve (status {process.wait()})")
        self.port = int(line.removeprefix("port "))

    def tags(self, ids: Sequence[UUID]) -> list[str]:
        """Ask for every document once, so that each is cached; their entity tags.

        Raises :class:`WorkerFailed` for an answer that is not the document.
        """
        connection, tags = http.client.HTTPConnection("127.0.0.1", self.port, timeout=10), []
        with contextlib.closing(connection):
            for each in ids:
                connection.request("GET", f"/products/{each}")
                answer = connection.getresponse()
                body = json.loads(answer.read())
                if answer.status != 200 or body.get("id", str(each)) != str(each):
                    raise WorkerFailed(f"{self.name}: {answer.status} {body}")
                tags.append(answer.headers.get("ETag", ""))
        return tags

    def revalidates(self, which: UUID, tag: str) -> None:
        """Raise :class:`WorkerFailed` unless ``tag`` of the document is answered with 304."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=10)
        with contextlib.closing(connection):
            connection.request("GET", f"/products/{which}", headers={"If-None-Match": tag})
            status = connection.getresponse().status
        if status != 304:
            raise WorkerFailed(f"{self.name}: If-None-Match is answered with {status}")

    def processor_seconds(self) -> float:
        """What it has spent so far, in steps of some milliseconds."""
        fields = Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) * _TICK_SECONDS

    def resident_bytes(self) -> int:
        """What it holds in memory."""
        pages = int(Path(f"/proc/{self.pid}/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE")


@contextmanager
def server(name: str, python: Path, app: str, settings: Mapping[str, Any]) -> Iterator[Server]:
    """Serve ``bench/http/apps/<app>.py`` for the length of the block, whatever ends it."""
    process = subprocess.Popen(
        [python, _HERE / "serve.py", _HERE / "apps" / f"{app}.py"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,  # Ctrl-C is for us, and we end it
        **surroundings(python),
    )
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        process.stdin.write(json.dumps(dict(settings)) + "\n")
        process.stdin.flush()
        yield Server(name, process)
    finally:
        with contextlib.suppress(OSError):
            process.stdin.close()
        try:
            process.wait(_STOP_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        process.stdout.close()

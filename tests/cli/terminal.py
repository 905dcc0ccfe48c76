"""A program at a terminal of its own, which types and reads."""

from __future__ import annotations

import codecs
import os
import pty
import select
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

PATIENCE_SECONDS = 30.0
_AS_CONTROLLING = 'terminal=$1; shift; exec "$@" <"$terminal" >"$terminal" 2>&1'


class Terminal:
    """Runs ``python -m forze_cli`` with a new pseudo-terminal as its controlling one."""

    def __init__(
        self, *arguments: str, directory: Path, environment: Mapping[str, str] | None = None
    ) -> None:
        self._main, follower = pty.openpty()
        command: Sequence[str] = (sys.executable, "-m", "forze_cli", *arguments)
        self.process = subprocess.Popen(
            ["/bin/sh", "-c", _AS_CONTROLLING, "sh", os.ttyname(follower), *command],
            cwd=directory,
            env={**os.environ, "TERM": "xterm", "COLUMNS": "200", **(environment or {})},
            start_new_session=True,
        )
        self.shown = ""
        self._decoder = codecs.getincrementaldecoder("utf-8")()
        self._follower = follower

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        os.close(self._follower)
        os.close(self._main)

    def wait_for(self, text: str) -> None:
        """Read until ``text`` is shown."""
        deadline = time.monotonic() + PATIENCE_SECONDS
        while text not in self.shown:
            ready, _, _ = select.select([self._main], [], [], deadline - time.monotonic())
            assert ready, f"{text!r} does not come after {self.shown!r}"
            self._read()

    def type(self, text: str) -> None:
        """Type ``text``; ``\\x03`` is Ctrl-C."""
        os.write(self._main, text.encode())

    def end(self) -> int:
        """Wait for the end of the program; its exit code."""
        deadline = time.monotonic() + PATIENCE_SECONDS
        while self.process.poll() is None:
            assert time.monotonic() < deadline, f"it does not end after {self.shown!r}"
            if select.select([self._main], [], [], 0.02)[0]:
                self._read()
        while select.select([self._main], [], [], 0)[0]:
            self._read()
        return self.process.wait()

    def _read(self) -> None:
        self.shown += self._decoder.decode(os.read(self._main, 65536))

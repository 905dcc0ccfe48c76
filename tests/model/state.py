"""What one state of the model consists of, and how a run of the checker is set up.

One key. The pointer in a state *is* the shipped dataclass (``Value``, ``Lease``, ``Intent``
or ``None``), and whatever happens to it is done by the functions of :class:`Transitions`,
which are the shipped ones unless a mutation replaces one of them. The records of writers
and readers hold what those processes know, and a few history variables (``must``, ``lost``)
that only the checks look at.

Time is not counted. The server's clock stands at ``NOW``; a deadline is ``LIVE`` until a
fault rewrites it to ``LAPSED`` and lets the shipped ``prune`` drop it. A writer's own clock
takes three positions (:class:`Clock`), which lie as far apart as the shipped constants say.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from enum import Enum, IntEnum

from tests.model.l1 import Link, Local, Shipped

from forze.application.integrations.document import protocol
from forze.application.integrations.document.protocol import Pointer, Read, Value

LAPSED, NOW, LIVE = 0, 0, 1
"""A deadline that is over, the server's clock, a deadline still ahead."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Transitions:
    """The functions the model executes; a mutation replaces one of them by a wrong one."""

    prune: Callable[[Pointer, int], Pointer] = protocol.prune
    read: Callable[[Pointer, str, str | None, int, int], tuple[Pointer, Read]] = protocol.read
    fill: Callable[[Pointer, str, str, str, int], tuple[Pointer, bool]] = protocol.fill
    renew: Callable[[Pointer, str, str, int, int], Pointer] = protocol.renew
    give_back: Callable[[Pointer, str, str, int], Pointer] = protocol.give_back
    elect: Callable[[Pointer, str, str, int, int], tuple[Pointer, bool]] = protocol.elect
    intend: Callable[[Pointer, str, int, int], Pointer] = protocol.intend
    done: Callable[[Pointer, str, int], Pointer] = protocol.done
    put: Callable[[Pointer, str, str, int], tuple[Pointer, bool]] = protocol.put
    may_commit: Callable[[float, float], bool] = protocol.may_commit


class Slip(Enum):
    """A way in which a client of the protocol may misbehave; each must be caught."""

    WRITES_WITHOUT_INTENT = "a kill commits without an intent"
    UNANSWERED_RENEWAL_COUNTS = "deadline counted from an unanswered renewal"
    ACK_BEFORE_DONE = "acknowledged before done"
    DONE_AFTER_UNKNOWN_COMMIT = "done at once after an unknown commit"
    ROLLBACK_LEAVES_INTENT = "rollback leaves the intent"
    JOINS_ANY_FLIGHT = "follower takes the value of any flight it joined"
    JOINS_AFTER_FILL_SENT = "follower trusts a fill sent before it started"
    TRUSTS_REFUSED_FILL = "late follower takes the value of a refused fill"
    NOTHING_FOR_EVERYONE = "late follower takes a not-found of an older query"
    FILLS_FROM_SNAPSHOT = "fill from a snapshot older than the lease"
    TRANSACTION_READER_FILLS = "a reader inside a transaction fills"
    FILLS_WITH_OLD_TAG = "fill after a failover under the tag of the lease"
    KEEPS_OVER_OWN_WRITES = "NOLOOP without a local drop"
    KEEPS_AT_ANSWER = "NOLOOP without a local drop at the answer"
    KEEPS_AT_RENEWAL = "NOLOOP without a local drop at the answer of a renewal"
    KEEPS_AT_LEASE = "NOLOOP without a local drop at the answer of a lease"
    REFUSED_FILL_KEPT = "value of a refused fill enters the L1"
    NO_FLUSH_ON_RETURN = "no flush on reconnect"
    TRUSTS_LOST_LINK = "the L1 is served while its push link is down"


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """Who takes part, which faults there are, and what the agents do besides the plain."""

    readers: int = 3
    writers: int = 2

    evict: bool = True  # the pointer is lost, in any state
    lapse: bool = True  # leases, refresh rights, write ids and the writers' own clocks
    crash: bool = True  # writers and readers die, anywhere
    unanswered: bool = False  # a probe is executed and its reply lost
    strays: bool = False  # renewals of an intent arrive late, even after the write has ended
    failover: bool = False  # once, to any earlier pointer

    nothing: bool = False  # loads fail, or find nothing
    refresh: bool = False  # a reader that hits may be elected to refresh early
    join: bool = False  # readers of one process share flights
    tokenless: bool = False  # reads that offer no token, as inside a transaction
    deploy: bool = False  # the last reader has another schema of the read model
    direct: bool = False  # values are stored directly, with any version that ever was current

    l1: Shipped | None = None  # the tier of the one process that readers live in
    elsewhere: int = 0  # how many readers live in another, without an L1
    local: int = 0  # how many of the writers live beside the L1
    pushes: bool = True  # whether it is told of changes; else its entries live by their ttl
    echo: bool = False  # NOLOOP or not, the server pushes what this process changed as well
    link: bool = False  # the connection that pushes arrive on is lost, any number of times

    slow: bool = False  # a COMMIT sent in time takes effect after its deadline (documented)
    survives: bool = False  # connections outlive the failover (outside the assumptions)

    transitions: Transitions = field(default_factory=Transitions)
    slips: frozenset[Slip] = frozenset()
    cap: int = 3_000_000  # states; reaching it is a failure


class Clock(IntEnum):
    """A writer's clock, counted from the sending of its last answered intent.

    COMMIT takes effect within one step of its sending, which is what the margin is for.
    """

    FRESH = 0
    MARGIN = 1
    OVER = 2

    @property
    def seconds(self) -> float:
        margin = (protocol.INTENT_MS - protocol.COMMIT_MARGIN_MS) / 1000
        return (0.0, margin, protocol.INTENT_MS / 1000)[self]


class Writing(Enum):
    """Where a writer stands."""

    IDLE = "idle"
    ANNOUNCING = "intent sent"  # this and the other three in between: only beside an L1
    INTENDED = "intent executed, reply under way"
    ANNOUNCED = "intent answered"
    COMMITTING = "COMMIT sent"
    COMMITTED = "COMMIT took effect"
    ROLLED_BACK = "rolled back"
    ENDING = "done sent"
    UNHEARD = "done executed, reply under way"
    ENDED = "done answered, not yet acknowledged"
    FINISHED = "finished"
    DIED = "died, nothing committed"
    ORPHANED = "died, COMMIT still at the backend"
    DIED_COMMITTED = "died between COMMIT and done"
    ACKED_EARLY = "acknowledged, done still due"  # only by a slip
    ABANDONED = "done sent, COMMIT still at the backend"  # only by a slip


@dataclass(frozen=True, slots=True)
class Writer:
    """One write. An unknown outcome needs no stage of its own: such a writer waits in
    ``COMMITTING`` until its backend has ended, sends done, and stays in ``ENDED``."""

    stage: Writing = Writing.IDLE
    version: int = 0  # what it committed
    clock: Clock = Clock.FRESH
    latest: Clock = Clock.FRESH  # the last position at which its COMMIT can take effect
    lost: bool = False  # history: a fault took its id before COMMIT took effect
    local: bool = False  # it lives in the process with the L1
    renewal: str | None = None  # of such a writer: under way, "sent" or "executed"


class Reading(Enum):
    """Where a reader stands."""

    IDLE = "idle"
    PROBING = "probe sent, or waiting to probe again"
    LOADING = "token held, query not yet executed"
    LOADED = "value read, fill due"
    NOTHING = "the query found nothing, token to be given back"
    ACCEPTED = "fill accepted, reply under way"
    REFUSED = "fill refused, reply under way"
    BYPASSING = "reads the source, fills nothing"
    SERVED = "hit returned, may ask to refresh"
    HIT = "hit, reply under way"  # this and those below up to RETURNING: only beside an L1
    LEASED = "lease taken, reply under way"
    FILLING = "fill sent"
    VOLUNTEERING = "asks to be elected to refresh"
    ELECTED = "elected, reply under way"
    PASSED_OVER = "not elected, reply under way"
    RETURNING = "token being given back"
    FOLLOWING = "joined a flight, waits for its fill"
    FINISHED = "finished"
    GONE = "died, or its lease was never heard of"


@dataclass(frozen=True, slots=True)
class Reader:
    """One read, or the flight it leads.

    ``must`` is the oldest version that the promise allows, for the reader and all that
    joined before its query was executed. ``followers`` has one such version for everyone
    that joined later and gets the value only if the fill is accepted.
    """

    stage: Reading = Reading.IDLE
    schema: str = "a"
    must: int = 0
    value: int = 0
    gen: int = 0  # the generation its token was taken under
    followers: tuple[int, ...] = ()
    unheard: bool = False  # a lease was left in its name that it does not know of
    elsewhere: bool = False  # it lives in another process than the one with the L1


@dataclass(frozen=True, slots=True)
class Replica:
    """What the replica that will be promoted holds."""

    pointer: Pointer


@dataclass(frozen=True, slots=True)
class World:
    """What all agents share."""

    db: int = 0  # the newest committed version
    ack: int = 0  # the newest acknowledged version
    gen: int = 0  # failovers so far
    pointer: Pointer = None
    replica: Replica | None = None  # None: still in sync
    local: Local | None = None  # the process with the L1


def tag(gen: int, schema: str) -> str:
    """The tag of a generation and a schema, in the shipped widths."""
    return f"{gen:0{protocol.GENERATION_CHARS}d}" + schema * protocol.SCHEMA_CHARS


def generation(text: str) -> int:
    """The generation in a tag."""
    return int(text[: protocol.GENERATION_CHARS])


def start(setting: Setting) -> tuple[World, tuple[Writer, ...], tuple[Reader, ...]]:
    """The first state: version 0 is current and cached, nobody has begun."""
    last = "b" if setting.deploy else "a"
    schemas = ["a"] * (setting.readers - 1) + [last]
    world = World(pointer=Value(tag(0, "a"), "0"))
    if setting.l1 is not None:
        world = replace(world, local=Local(link=Link.UP if setting.pushes else Link.NONE))
    writers = tuple(Writer(local=each < setting.local) for each in range(setting.writers))
    readers = tuple(
        Reader(schema=schema, elsewhere=place < setting.elsewhere)
        for place, schema in enumerate(schemas)
    )
    return world, writers, readers

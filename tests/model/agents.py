"""What writers, readers and faults can do next, each as moves out of one state.

The agents follow the coordinator: who sends which command when, and what is made of the
answer. What a command does to the pointer is not said here; ``setting.transitions`` is
asked. A move that returns something to a caller, or that takes something away it must not,
is checked on the spot and carries what is ``wrong``.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from tests.model.state import (
    LAPSED,
    LIVE,
    NOW,
    Clock,
    Reader,
    Reading,
    Replica,
    Setting,
    Slip,
    World,
    Writer,
    Writing,
    tag,
)

from forze.application.integrations.document.protocol import (
    GENERATION_CHARS,
    Intent,
    Lease,
    Pointer,
    Read,
    Value,
    lower,
)


@dataclass(frozen=True, slots=True)
class WriterMove:
    """A step of one writer."""

    label: str
    world: World
    writer: Writer
    at_server: bool = False  # a command is executed: nothing else can happen in a server's turn


@dataclass(frozen=True, slots=True)
class ReaderMove:
    """A step of one reader.

    The followers in ``freed`` start over with a probe of their own; ``answered`` others
    have been given the value.
    """

    label: str
    world: World
    reader: Reader
    freed: tuple[int, ...] = ()
    answered: int = 0
    wrong: str | None = None
    at_server: bool = False


@dataclass(frozen=True, slots=True)
class Join:
    """An idle reader joins a flight; ``leader`` is the flight's record afterwards."""

    leader: Reader
    joiner: Reader


@dataclass(frozen=True, slots=True)
class Fault:
    """Something that happens to the server, or through a direct write, and to no agent."""

    label: str
    world: World
    writers: tuple[Writer, ...]
    wrong: str | None = None
    removes: bool = False  # the server removes the key, and says so where it is followed


def writer_token(index: int) -> str:
    return f"w{index}"


def reader_token(index: int) -> str:
    return f"r{index}"


# Writers


def writer_moves(
    setting: Setting, index: int, writer: Writer, world: World
) -> Iterator[WriterMove]:
    """Intent, renewals, COMMIT or ROLLBACK, done, acknowledgement; or death at any point."""
    yield from time_passes(setting, writer, world)
    yield from _announcing(setting, index, writer, world)
    yield from committing(setting, index, writer, world)
    yield from ending(setting, index, writer, world)
    if setting.crash:
        yield from _dying(writer, world)


_UNDECIDED = {Writing.INTENDED, Writing.ANNOUNCED, Writing.COMMITTING, Writing.ORPHANED}
"""COMMIT may still take effect, and the writer's clock says whether."""


def time_passes(setting: Setting, writer: Writer, world: World) -> Iterator[WriterMove]:
    if setting.lapse and writer.stage in _UNDECIDED and writer.clock < Clock.OVER:
        later = Clock(writer.clock + 1)
        label = "deadline is over" if later is Clock.OVER else "only the margin is left"
        yield WriterMove(label, world, replace(writer, clock=later))


def _announcing(setting: Setting, index: int, writer: Writer, world: World) -> Iterator[WriterMove]:
    announced = setting.transitions.intend(world.pointer, writer_token(index), LIVE, NOW)
    after = replace(world, pointer=announced)
    match writer.stage:
        case Writing.IDLE:
            yield WriterMove("intent", after, Writer(Writing.ANNOUNCED), at_server=True)
            if Slip.WRITES_WITHOUT_INTENT in setting.slips:
                silent = Writer(Writing.COMMITTING, latest=Clock.MARGIN)
                yield WriterMove("COMMIT sent without an intent", world, silent)
        case Writing.ANNOUNCED | Writing.COMMITTING | Writing.COMMITTED | Writing.ROLLED_BACK:
            renewed = replace(writer, clock=Clock.FRESH, lost=False)
            yield WriterMove("renewal", after, renewed, at_server=True)
            if Slip.UNANSWERED_RENEWAL_COUNTS in setting.slips:
                unheard = replace(writer, clock=Clock.FRESH)
                yield WriterMove("renewal sent, never arrives", world, unheard)
        case _:
            pass
    if setting.strays and writer.stage is not Writing.IDLE:
        late = replace(writer, lost=False)
        yield WriterMove("a late renewal arrives", after, late, at_server=True)


def committing(setting: Setting, index: int, writer: Writer, world: World) -> Iterator[WriterMove]:
    committed = replace(world, db=world.db + 1)
    in_time = writer.clock <= writer.latest
    match writer.stage:
        case Writing.ANNOUNCED:
            if setting.transitions.may_commit(0.0, writer.clock.seconds):
                latest = Clock(min(writer.clock + 1, Clock.OVER))
                sent = replace(writer, stage=Writing.COMMITTING, latest=latest)
                yield WriterMove("COMMIT sent", world, sent)
            yield WriterMove("ROLLBACK", world, Writer(Writing.ROLLED_BACK))
            if Slip.TRANSACTION_READER_FILLS in setting.slips:
                yield from _fill_uncommitted(setting, index, writer, world)
        case Writing.COMMITTING:
            if in_time or setting.slow:
                late = setting.slow and not in_time
                won = Writer(Writing.COMMITTED, committed.db, lost=writer.lost or late)
                yield WriterMove(f"COMMIT takes effect, v{committed.db}", committed, won)
            yield WriterMove("COMMIT fails", world, Writer(Writing.ROLLED_BACK))
            if Slip.DONE_AFTER_UNKNOWN_COMMIT in setting.slips:
                pointer = setting.transitions.done(world.pointer, writer_token(index), NOW)
                ended = replace(world, pointer=pointer)
                yield WriterMove("connection lost, done", ended, Writer(Writing.ABANDONED))
        case Writing.ORPHANED:
            if in_time:
                dead = Writer(Writing.DIED_COMMITTED, lost=writer.lost)
                yield WriterMove(f"backend commits v{committed.db}", committed, dead)
            yield WriterMove("backend rolls back", world, Writer(Writing.DIED))
        case Writing.ABANDONED:
            yield WriterMove(
                f"backend commits v{committed.db}", committed, Writer(Writing.FINISHED)
            )
        case _:
            pass


def _fill_uncommitted(
    setting: Setting, index: int, writer: Writer, world: World
) -> Iterator[WriterMove]:
    own, token = tag(world.gen, "a"), f"t{index}"
    pointer, found = setting.transitions.read(world.pointer, own, token, LIVE, NOW)
    if found is Read.LEASED:
        pointer, _ = setting.transitions.fill(pointer, own, token, str(world.db + 1), NOW)
        yield WriterMove("reads its own row and fills", replace(world, pointer=pointer), writer)


def ending(setting: Setting, index: int, writer: Writer, world: World) -> Iterator[WriterMove]:
    ended = setting.transitions.done(world.pointer, writer_token(index), NOW)
    after = replace(world, pointer=ended)
    acked = replace(world, ack=max(world.ack, writer.version))
    match writer.stage:
        case Writing.COMMITTED:
            done = Writer(Writing.ENDED, writer.version)
            yield WriterMove("done", after, done, at_server=True)
            if Slip.ACK_BEFORE_DONE in setting.slips:
                early = replace(writer, stage=Writing.ACKED_EARLY)
                yield WriterMove(f"acknowledges v{writer.version}", acked, early)
        case Writing.ROLLED_BACK if Slip.ROLLBACK_LEAVES_INTENT in setting.slips:
            yield WriterMove("leaves it at that", world, Writer(Writing.FINISHED))
        case Writing.ROLLED_BACK | Writing.ACKED_EARLY:
            yield WriterMove("done", after, Writer(Writing.FINISHED), at_server=True)
        case Writing.ENDED:
            yield WriterMove(f"acknowledges v{writer.version}", acked, Writer(Writing.FINISHED))
        case _:
            pass


def _dying(writer: Writer, world: World) -> Iterator[WriterMove]:
    match writer.stage:
        case Writing.ANNOUNCED | Writing.ROLLED_BACK:
            yield WriterMove("dies", world, Writer(Writing.DIED))
        case Writing.COMMITTING:
            orphaned = replace(writer, stage=Writing.ORPHANED)
            yield WriterMove("dies with COMMIT at the backend", world, orphaned)
        case Writing.COMMITTED:
            dead = Writer(Writing.DIED_COMMITTED, lost=writer.lost)
            yield WriterMove("dies between COMMIT and done", world, dead)
        case _:
            pass


# Readers


def reader_moves(
    setting: Setting, index: int, reader: Reader, world: World
) -> Iterator[ReaderMove]:
    """Probe; hit, or load and fill, or read the source and fill nothing."""
    match reader.stage:
        case Reading.IDLE:
            yield begin(setting, reader, world)
        case Reading.PROBING:
            yield from probing(setting, index, reader, world)
        case Reading.BYPASSING:
            end = Reading.GONE if reader.unheard else Reading.FINISHED
            yield returns("source", reader, world, world.db, end)
        case Reading.SERVED:
            yield from electing(setting, index, reader, world)
        case Reading.LOADING:
            yield from loading(setting, index, reader, world)
        case Reading.LOADED:
            yield from filling(setting, index, reader, world)
        case Reading.NOTHING:
            pointer = give_back(setting, index, reader, world)
            after = replace(world, pointer=pointer)
            move = returns("gives back, nothing found", reader, after, reader.value)
            yield _guarded(setting, reader, world, replace(move, freed=reader.followers))
        case Reading.ACCEPTED | Reading.REFUSED:
            yield fill_answered(reader, world)
        case Reading.FOLLOWING | Reading.FINISHED | Reading.GONE:
            pass
    if reader.stage in (Reading.LOADING, Reading.LOADED):
        yield from _renewing(setting, index, reader, world)
    if setting.crash and reader.stage in (Reading.LOADING, Reading.LOADED):
        gone = Reader(Reading.GONE, reader.schema)
        yield ReaderMove("dies", world, gone, freed=reader.followers)


def begin(setting: Setting, reader: Reader, world: World) -> ReaderMove:
    must = _promised(setting, world)
    gen = world.gen if setting.survives else 0
    begun = Reader(Reading.PROBING, reader.schema, must, gen=gen)
    if _reads_ahead(setting):
        begun = replace(begun, value=world.db)
    return ReaderMove(f"starts, must see v{must}", world, begun)


def _promised(setting: Setting, world: World) -> int:
    """The oldest version that a read starting now may return."""
    # Values stored directly are whatever their writer says: the promise is not about them.
    return 0 if setting.direct else world.ack


def _reads_ahead(setting: Setting) -> bool:
    return Slip.FILLS_FROM_SNAPSHOT in setting.slips


def generation_known(setting: Setting, reader: Reader, world: World) -> int:
    """What the reader's connection says: the server's generation, as learnt when it was made."""
    return reader.gen if setting.survives else world.gen


def probing(setting: Setting, index: int, reader: Reader, world: World) -> Iterator[ReaderMove]:
    gen = generation_known(setting, reader, world)
    known = tag(gen, reader.schema)
    probes = (reader_token(index), None) if setting.tokenless else (reader_token(index),)
    bypassing = Reader(Reading.BYPASSING, reader.schema, reader.must)
    for token in probes:
        pointer, found = setting.transitions.read(world.pointer, known, token, LIVE, NOW)
        after = replace(world, pointer=pointer)
        if found is Read.HIT:
            assert isinstance(pointer, Value)
            end = Reading.SERVED if setting.refresh and token else Reading.FINISHED
            move = returns("hit", reader, after, int(pointer.version), end)
            if pointer.tag[GENERATION_CHARS:] != known[GENERATION_CHARS:]:
                move = replace(move, wrong="FOREIGN: a body of another schema was returned")
        elif found is Read.LEASED:
            holder = replace(reader, stage=Reading.LOADING, gen=gen)
            move = ReaderMove("leases", after, holder)
        else:
            move = ReaderMove(f"finds {found.value}", after, bypassing)
        yield _guarded(setting, reader, world, move)
        if setting.unanswered and found is Read.LEASED:
            deaf = replace(bypassing, unheard=True)
            yield ReaderMove("leases, and the reply is lost", after, deaf)


def electing(setting: Setting, index: int, reader: Reader, world: World) -> Iterator[ReaderMove]:
    gen = generation_known(setting, reader, world)
    known = tag(gen, reader.schema)
    pointer, won = setting.transitions.elect(world.pointer, known, reader_token(index), LIVE, NOW)
    if won:
        holder = Reader(Reading.LOADING, reader.schema, gen=gen)
        move = ReaderMove("is elected to refresh", replace(world, pointer=pointer), holder)
        yield _guarded(setting, reader, world, move)


def loading(setting: Setting, index: int, reader: Reader, world: World) -> Iterator[ReaderMove]:
    seen = reader.value if _reads_ahead(setting) else world.db
    yield ReaderMove(f"loads v{seen}", world, replace(reader, stage=Reading.LOADED, value=seen))
    if setting.nothing:
        nothing = replace(reader, stage=Reading.NOTHING, value=seen)
        yield ReaderMove(f"finds nothing as of v{seen}", world, nothing)
        after = replace(world, pointer=give_back(setting, index, reader, world))
        failed = Reader(Reading.FINISHED, reader.schema)
        yield _guarded(setting, reader, world, ReaderMove("load fails, gives back", after, failed))


def _renewing(setting: Setting, index: int, reader: Reader, world: World) -> Iterator[ReaderMove]:
    """As long as the query's answer has not come, executed as it may be."""
    known = tag(generation_known(setting, reader, world), reader.schema)
    renewed = setting.transitions.renew(world.pointer, known, reader_token(index), LIVE, NOW)
    if renewed != world.pointer:
        move = ReaderMove("renews what it holds", replace(world, pointer=renewed), reader)
        yield _guarded(setting, reader, world, move)


def filling(setting: Setting, index: int, reader: Reader, world: World) -> Iterator[ReaderMove]:
    gen = generation_known(setting, reader, world)
    if gen != reader.gen:
        dropped = fill_answered(replace(reader, stage=Reading.REFUSED), world)
        yield replace(dropped, label="reconnected, drops its token")
    # A process that keeps its token over a reconnect must be refused by the fill itself.
    under = reader.gen if Slip.FILLS_WITH_OLD_TAG in setting.slips else gen
    pointer, stored = setting.transitions.fill(
        world.pointer, tag(under, reader.schema), reader_token(index), str(reader.value), NOW
    )
    after = replace(world, pointer=pointer)
    filled = replace(reader, stage=Reading.ACCEPTED if stored else Reading.REFUSED)
    move = ReaderMove(f"fill {filled.stage.name.lower()}", after, filled)
    if setting.l1 is None and not _JOINS_LATE & setting.slips:
        # Nobody looks at the flight before its reply is in: both are one step.
        move = fill_answered(filled, after)
    yield _guarded(setting, reader, world, move)


_JOINS_LATE = {Slip.JOINS_ANY_FLIGHT, Slip.JOINS_AFTER_FILL_SENT, Slip.TRUSTS_REFUSED_FILL}


def fill_answered(reader: Reader, world: World) -> ReaderMove:
    """The value goes to the caller, and to the followers if the fill was accepted."""
    move = returns(f"fill {reader.stage.name.lower()}", reader, world, reader.value)
    if reader.stage is Reading.REFUSED:
        return replace(move, freed=reader.followers)
    oldest = max(reader.followers, default=0)
    wrong = _stale(reader.value, oldest) if reader.value < oldest else move.wrong
    return replace(move, answered=len(reader.followers), wrong=wrong)


def give_back(setting: Setting, index: int, reader: Reader, world: World) -> Pointer:
    known = tag(generation_known(setting, reader, world), reader.schema)
    return setting.transitions.give_back(world.pointer, known, reader_token(index), NOW)


def returns(
    what: str,
    reader: Reader,
    world: World,
    version: int,
    end: Reading = Reading.FINISHED,
) -> ReaderMove:
    wrong = None
    if version < reader.must:
        wrong = _stale(version, reader.must)
    elif version > world.db:
        wrong = f"DIRTY: v{version} returned, which was never committed"
    ended = Reader(end, reader.schema, gen=reader.gen if end is Reading.SERVED else 0)
    return ReaderMove(f"{what}, returns v{version}", world, ended, wrong=wrong)


def _stale(version: int, must: int) -> str:
    return f"P: v{version} returned, v{must} was acknowledged before"


def _guarded(setting: Setting, reader: Reader, before: World, move: ReaderMove) -> ReaderMove:
    """No command of a reader takes away a value that readers of its tag can have."""
    gen = generation_known(setting, reader, before)
    value, left = before.pointer, move.world.pointer
    if move.wrong or gen != before.gen or not isinstance(value, Value):
        return move
    kept = isinstance(left, Value) and not lower(left.version, value.version)
    if kept or value.tag != tag(gen, reader.schema):
        return move
    return replace(move, wrong=f"HIDDEN: a reader took the current v{value.version} away")


# Flights


def join(setting: Setting, leader: Reader, idle: Reader, world: World) -> Join | None:
    """``idle`` starts by joining the flight that ``leader`` leads, if there is one.

    Before the query is executed it shares the leader's fate. After that it waits for the
    fill, and starts over if that is refused or never comes. Once the fill is under way it
    starts on its own, as an ordinary reader does; the slips show why.
    """
    must = _promised(setting, world)
    shared = replace(leader, must=max(leader.must, must))
    waits = replace(leader, followers=tuple(sorted((*leader.followers, must))))
    finished = Reader(Reading.FINISHED, idle.schema)
    following = Reader(Reading.FOLLOWING, idle.schema)
    anything = Slip.JOINS_ANY_FLIGHT in setting.slips
    match leader.stage:
        case Reading.PROBING | Reading.LOADING | Reading.BYPASSING:
            return Join(shared, finished)
        case Reading.LOADED | Reading.NOTHING | Reading.ACCEPTED | Reading.REFUSED if anything:
            return Join(shared, finished)
        case Reading.NOTHING if Slip.NOTHING_FOR_EVERYONE in setting.slips:
            return Join(shared, finished)
        case Reading.REFUSED if Slip.TRUSTS_REFUSED_FILL in setting.slips:
            return Join(shared, finished)
        case Reading.LOADED | Reading.NOTHING:
            return Join(waits, following)
        case Reading.ACCEPTED if Slip.JOINS_AFTER_FILL_SENT in setting.slips:
            return Join(waits, following)
    return None


# Faults


def faults(setting: Setting, world: World, writers: tuple[Writer, ...]) -> Iterator[Fault]:
    """Eviction, lapses, failover, and values stored directly by somebody else."""
    if setting.evict and world.pointer is not None:
        evicted = _loses("pointer evicted", world, replace(world, pointer=None), writers)
        yield replace(evicted, removes=True)
    if setting.lapse:
        yield from _lapses(setting, world, writers)
    if setting.failover and world.gen == 0:
        if world.replica is None:
            frozen = replace(world, replica=Replica(world.pointer))
            yield Fault("replica stops following", frozen, writers)
        else:
            promoted = replace(world, gen=1, pointer=world.replica.pointer, replica=None)
            yield _loses("FAILOVER", world, promoted, writers)
    if setting.direct:
        yield from _direct_values(setting, world, writers)


def _lapses(setting: Setting, world: World, writers: tuple[Writer, ...]) -> Iterator[Fault]:
    prune = setting.transitions.prune
    for what, over in lapsed(world.pointer):
        after = replace(world, pointer=prune(over, NOW))
        if not isinstance(world.pointer, Intent):
            yield Fault(f"{what} lapses", after, writers, removes=after.pointer is None)
            continue
        owner, gone = writers[int(what.removeprefix("w"))], after.pointer is None
        if owner.stage not in _UNDECIDED or owner.clock is Clock.OVER:
            # Once decided, an early lapse does no more than an eviction does.
            yield Fault(f"intent of {what} lapses", after, writers, removes=gone)
        elif world.gen:
            # What a failover brought back may carry an older deadline than its writer counts.
            early = f"intent of {what}, brought back, lapses early"
            yield replace(_loses(early, world, after, writers), removes=gone)


def lapsed(pointer: Pointer) -> Iterator[tuple[str, Pointer]]:
    """Each deadline in the pointer, and the pointer with that deadline over."""
    match pointer:
        case Lease():
            yield "lease", replace(pointer, until=LAPSED)
        case Value(refresh=refresh) if refresh is not None:
            yield "refresh", replace(pointer, refresh=replace(refresh, until=LAPSED))
        case Intent(ids):
            for write_id in sorted({each for each, _ in ids}):
                over = tuple((i, LAPSED if i == write_id else until) for i, until in ids)
                yield write_id, Intent(over)


def _loses(label: str, before: World, after: World, writers: tuple[Writer, ...]) -> Fault:
    """A fault that may take the ids of writers along, noted where COMMIT can still come."""
    gone = write_ids(before.pointer) - write_ids(after.pointer)
    noted = tuple(
        replace(writer, lost=True)
        if writer_token(index) in gone and writer.stage in _UNDECIDED
        else writer
        for index, writer in enumerate(writers)
    )
    return Fault(label, after, noted)


def write_ids(pointer: Pointer) -> set[str]:
    """The writers that stand in the pointer."""
    return {each for each, _ in pointer.ids} if isinstance(pointer, Intent) else set()


def _direct_values(setting: Setting, world: World, writers: tuple[Writer, ...]) -> Iterator[Fault]:
    own = tag(world.gen, "a")
    for version in range(world.db + 1):
        pointer, _ = setting.transitions.put(world.pointer, own, str(version), NOW)
        wrong = None
        if isinstance(world.pointer, Intent) and pointer != world.pointer:
            wrong = "OVERWRITTEN: a value was stored over an intent"
        elif isinstance(world.pointer, Value) and isinstance(pointer, Value):
            same = world.pointer.tag[:GENERATION_CHARS] == own[:GENERATION_CHARS]
            if same and lower(pointer.version, world.pointer.version):
                wrong = f"LOWERED: v{version} was stored over v{world.pointer.version}"
        yield Fault(
            f"v{version} is stored directly", replace(world, pointer=pointer), writers, wrong
        )

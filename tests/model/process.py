"""The readers and writers of a process that has an L1, and the pushes to it.

The plain agents send a command, have it executed and hear of it in one step. Here the three
are apart, because the tier is told at the first and the last, and others come in between.
Unchanged are the source, the commands themselves (``agents``) and the tier (``l1``).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from tests.model import l1
from tests.model.agents import (
    Fault,
    ReaderMove,
    WriterMove,
    begin,
    committing,
    electing,
    ending,
    faults,
    fill_answered,
    filling,
    generation_known,
    give_back,
    loading,
    probing,
    reader_moves,
    reader_token,
    returns,
    time_passes,
    writer_moves,
    writer_token,
)
from tests.model.l1 import Kept, Link, Local, Shipped
from tests.model.state import (
    LIVE,
    NOW,
    Clock,
    Reader,
    Reading,
    Setting,
    Slip,
    World,
    Writer,
    Writing,
    tag,
)

from forze.application.integrations.document.protocol import Value

# What is possible, in or out of a process with an L1


def writer_steps(
    setting: Setting, index: int, writer: Writer, world: World
) -> Iterator[WriterMove]:
    """What a writer can do next."""
    if world.local is None:
        yield from writer_moves(setting, index, writer, world)
        return
    moves = _local_writer_moves if writer.local else writer_moves
    for move in moves(setting, index, writer, world):
        after = replace(move, writer=replace(move.writer, local=writer.local))
        if move.at_server:
            rewritten = (world.pointer, move.world.pointer) != (None, None)
            noted = _changed(move.world, own=writer.local) if rewritten else move.world
            yield replace(after, world=noted)
        elif world.local.turn is None:
            yield after


def reader_steps(
    setting: Setting, index: int, reader: Reader, world: World
) -> Iterator[ReaderMove]:
    """What a reader can do next."""
    if world.local is None:
        yield from reader_moves(setting, index, reader, world)
        return
    if reader.elsewhere:
        yield from _remote_reader_steps(setting, index, reader, world)
        return
    for move in _local_reader_moves(setting, index, reader, world):
        if move.at_server:
            yield replace(move, world=_noted(world, move.world, own=True))
        elif world.local.turn is None:
            yield move


def _remote_reader_steps(
    setting: Setting, index: int, reader: Reader, world: World
) -> Iterator[ReaderMove]:
    assert world.local is not None
    commands = reader.stage not in (Reading.IDLE, Reading.LOADING, Reading.BYPASSING)
    for move in reader_moves(setting, index, reader, world):
        after = replace(move, reader=replace(move.reader, elsewhere=True))
        if commands or world.local.turn is None or move.world.pointer != world.pointer:
            yield replace(after, world=_noted(world, move.world, own=False))


def fault_steps(setting: Setting, world: World, writers: tuple[Writer, ...]) -> Iterator[Fault]:
    """What can happen besides; on the way to a process with an L1 too."""
    for fault in faults(setting, world, writers):
        if world.local is None:
            yield fault
        elif fault.world.gen != world.gen:
            yield replace(fault, world=replace(fault.world, local=world.local.broken()))
        elif fault.removes:
            yield replace(fault, world=_noted(world, fault.world, own=False))
        else:
            yield fault
    if setting.l1 is not None and world.local is not None:
        for label, local in _on_the_way(setting, setting.l1, world.local):
            yield Fault(label, replace(world, local=local), writers)


def _noted(before: World, after: World, *, own: bool) -> World:
    """``after``, with the change of the pointer noted by the server."""
    if before.pointer == after.pointer:
        return after
    return _changed(after, own=own)


def _changed(world: World, *, own: bool) -> World:
    assert world.local is not None
    return replace(world, local=world.local.changed(own=own))


# Pushes and the link they come on


def _on_the_way(setting: Setting, tier: Shipped, local: Local) -> Iterator[tuple[str, Local]]:
    if local.turn is not None:
        yield "the server's turn ends", local.turn_ends(echo=setting.echo)
        return
    if local.pushes:
        kept = l1.drop(tier, local.kept, pushed=True)
        yield "push arrives", replace(local, kept=kept, pushes=local.pushes - 1)
    if setting.link or local.link is not Link.UP:
        yield from _link(setting, tier, local)


def _link(setting: Setting, tier: Shipped, local: Local) -> Iterator[tuple[str, Local]]:
    slips, kept = setting.slips, local.kept
    match local.link:
        case Link.UP:
            yield "push link breaks", local.broken()
        case Link.BROKEN:
            down = l1.flush(tier, kept, trusted=Slip.TRUSTS_LOST_LINK in slips)
            yield "the process notices", replace(local, kept=down, link=Link.DOWN)
        case Link.DOWN:
            yield "push link is back", replace(local, kept=kept, link=Link.RETURNING)
        case Link.RETURNING:
            flushed = l1.flush(tier, kept, trusted=True)
            if Slip.NO_FLUSH_ON_RETURN in slips:
                flushed = l1.trust(tier, kept)
            yield "the process hears of it", replace(local, kept=flushed, link=Link.UP)
            yield "push link breaks", local.broken()
        case Link.NONE:
            pass


# Writers of the process


def _told(setting: Setting, world: World, *slips: Slip) -> World:
    """The process tells its tier of its own write, unless it makes one of these slips."""
    if setting.slips.intersection(slips):
        return world
    assert setting.l1 is not None
    assert world.local is not None
    return _with(world, l1.drop(setting.l1, world.local.kept, pushed=False))


def _with(world: World, kept: Kept) -> World:
    assert world.local is not None
    return replace(world, local=replace(world.local, kept=kept))


def _local_writer_moves(
    setting: Setting, index: int, writer: Writer, world: World
) -> Iterator[WriterMove]:
    """A process that dies takes its tier along, so these writers live."""
    transitions, token = setting.transitions, writer_token(index)
    sending = _told(setting, world, Slip.KEEPS_OVER_OWN_WRITES)
    heard = _told(setting, world, Slip.KEEPS_OVER_OWN_WRITES, Slip.KEEPS_AT_ANSWER)
    announced = replace(world, pointer=transitions.intend(world.pointer, token, LIVE, NOW))
    if writer.renewal is None:
        yield from time_passes(setting, writer, world)
    else:
        yield from _renewing(writer, announced, _told(setting, world, Slip.KEEPS_AT_RENEWAL))
    match writer.stage:
        case Writing.IDLE:
            yield WriterMove("intent sent", sending, Writer(Writing.ANNOUNCING))
        case Writing.ANNOUNCING:
            yield WriterMove("intent executed", announced, Writer(Writing.INTENDED), at_server=True)
        case Writing.INTENDED:
            yield WriterMove("intent answered", heard, replace(writer, stage=Writing.ANNOUNCED))
        case Writing.ANNOUNCED | Writing.COMMITTING:
            for move in committing(setting, index, writer, world):
                yield replace(move, writer=replace(move.writer, renewal=writer.renewal))
        case Writing.COMMITTED | Writing.ROLLED_BACK if writer.renewal != "sent":
            # The answers come in order: this one's drop stands for the renewal's too.
            yield WriterMove("done sent", sending, Writer(Writing.ENDING, writer.version))
        case Writing.ENDING:
            after = replace(world, pointer=transitions.done(world.pointer, token, NOW))
            unheard = Writer(Writing.UNHEARD, writer.version)
            yield WriterMove("done executed", after, unheard, at_server=True)
        case Writing.UNHEARD:
            stage = Writing.ENDED if writer.version else Writing.FINISHED
            yield WriterMove("done answered", heard, Writer(stage, writer.version))
        case Writing.ENDED:
            for move in ending(setting, index, writer, world):
                yield replace(move, world=_acknowledged(move.world, writer.version))
        case _:
            pass
    if writer.renewal is None and writer.stage in _RENEWS:
        yield WriterMove("renewal sent", sending, replace(writer, renewal="sent"))


_RENEWS = {Writing.ANNOUNCED, Writing.COMMITTING, Writing.COMMITTED, Writing.ROLLED_BACK}


def _renewing(writer: Writer, announced: World, heard: World) -> Iterator[WriterMove]:
    if writer.renewal == "sent":
        executed = replace(writer, renewal="executed", lost=False)
        yield WriterMove("renewal executed", announced, executed, at_server=True)
    else:
        fresh = replace(writer, renewal=None, clock=Clock.FRESH)
        yield WriterMove("renewal answered", heard, fresh)


def _acknowledged(world: World, version: int) -> World:
    assert world.local is not None
    acked = max(world.local.acked, version)
    return replace(world, local=replace(world.local, acked=acked))


# Readers of the process


def _local_reader_moves(
    setting: Setting, index: int, reader: Reader, world: World
) -> Iterator[ReaderMove]:
    assert setting.l1 is not None
    assert world.local is not None
    tier, kept, token = setting.l1, world.local.kept, reader_token(index)
    forgotten = _with(world, l1.forget(tier, kept))
    match reader.stage:
        case Reading.IDLE:
            yield _starts(setting, tier, token, reader, world)
        case Reading.PROBING:
            yield from _asking(setting, index, reader, world)
        case Reading.HIT:
            taken, _ = l1.take(tier, kept, (token, "probe"), reader.value)
            end = Reading.SERVED if setting.refresh else Reading.FINISHED
            yield returns("hit answered", reader, _with(world, taken), reader.value, end)
        case Reading.LEASED:
            holder = replace(reader, stage=Reading.LOADING)
            after = forgotten
            if Slip.KEEPS_AT_LEASE in setting.slips:
                after = _with(world, l1.withdraw(tier, kept, (token, "probe")))
            yield ReaderMove("lease answered", after, holder)
        case Reading.BYPASSING:
            yield _bypassing(tier, token, reader, world)
        case Reading.LOADING | Reading.LOADED:
            yield from _holding(setting, tier, index, reader, world)
        case Reading.FILLING:
            for move in filling(setting, index, reader, world):
                yield replace(move, at_server=True)
        case Reading.ACCEPTED | Reading.REFUSED:
            yield _filled(setting, tier, token, reader, world)
        case Reading.NOTHING:
            yield returns("found nothing", reader, world, reader.value, Reading.RETURNING)
        case Reading.RETURNING:
            after = replace(world, pointer=give_back(setting, index, reader, world))
            finished = Reader(Reading.FINISHED, reader.schema)
            yield ReaderMove("token is given back", after, finished, at_server=True)
        case Reading.SERVED:
            yield ReaderMove("volunteers", forgotten, replace(reader, stage=Reading.VOLUNTEERING))
        case Reading.VOLUNTEERING:
            yield from _volunteering(setting, index, reader, world)
        case Reading.ELECTED | Reading.PASSED_OVER:
            won = reader.stage is Reading.ELECTED
            heard = Reading.LOADING if won else Reading.FINISHED
            yield ReaderMove("election answered", forgotten, replace(reader, stage=heard))
        case _:
            pass


def _starts(
    setting: Setting, tier: Shipped, token: str, reader: Reader, world: World
) -> ReaderMove:
    assert world.local is not None
    version = l1.served(tier, world.local.kept)
    if version is None:
        move = begin(setting, reader, world)
        return replace(
            move, world=_with(world, l1.reserve(tier, world.local.kept, (token, "probe")))
        )
    wrong = None
    if world.local.link in (Link.DOWN, Link.RETURNING):
        wrong = f"UNTRUSTED: v{version} from the L1 while pushes are known to be lost"
    elif version < world.local.acked:
        wrong = f"OWN: v{version} from the L1, v{world.local.acked} was written here"
    finished = Reader(Reading.FINISHED, reader.schema)
    return ReaderMove(f"finds v{version} in the L1", world, finished, wrong=wrong)


def _asking(setting: Setting, index: int, reader: Reader, world: World) -> Iterator[ReaderMove]:
    for move in probing(setting, index, reader, world):
        under_way = move.reader
        if move.reader.stage is Reading.LOADING:
            under_way = replace(move.reader, stage=Reading.LEASED)
        elif move.reader.stage is not Reading.BYPASSING:
            assert isinstance(move.world.pointer, Value)
            version = int(move.world.pointer.version)
            under_way = Reader(Reading.HIT, reader.schema, value=version)
        yield replace(move, reader=under_way, at_server=True)


def _bypassing(tier: Shipped, token: str, reader: Reader, world: World) -> ReaderMove:
    assert world.local is not None
    kept, end = world.local.kept, Reading.FINISHED
    if reader.unheard:
        kept, end = l1.forget(tier, kept), Reading.GONE
    else:
        kept = l1.withdraw(tier, kept, (token, "probe"))
    return returns("source", reader, _with(world, kept), world.db, end)


def _holding(
    setting: Setting, tier: Shipped, index: int, reader: Reader, world: World
) -> Iterator[ReaderMove]:
    """A lease or a right to refresh is held, and renewed without waiting for answers."""
    assert world.local is not None
    token = reader_token(index)
    if reader.stage is Reading.LOADED:
        reserved = l1.reserve(tier, world.local.kept, (token, "fill"))
        filler = replace(reader, stage=Reading.FILLING)
        yield ReaderMove("fill sent", _with(world, reserved), filler)
    else:
        for move in loading(setting, index, reader, world):
            if move.reader.stage is Reading.FINISHED:
                gives_back = Reader(Reading.RETURNING, reader.schema)
                yield ReaderMove("load fails", world, gives_back)
            else:
                yield move
    known = tag(generation_known(setting, reader, world), reader.schema)
    renewed = setting.transitions.renew(world.pointer, known, token, LIVE + 1, NOW)
    if renewed != world.pointer:
        after = _changed(world, own=True)
        yield ReaderMove("what it holds is renewed", after, reader, at_server=True)


def _filled(
    setting: Setting, tier: Shipped, token: str, reader: Reader, world: World
) -> ReaderMove:
    assert world.local is not None
    kept, mark = world.local.kept, (token, "fill")
    taken = False
    if reader.stage is Reading.ACCEPTED or Slip.REFUSED_FILL_KEPT in setting.slips:
        kept, taken = l1.take(tier, kept, mark, reader.value)
    if not taken:
        kept = l1.forget(tier, kept)
    return fill_answered(reader, _with(world, kept))


def _volunteering(
    setting: Setting, index: int, reader: Reader, world: World
) -> Iterator[ReaderMove]:
    won = False
    for move in electing(setting, index, reader, world):
        won = True
        elected = replace(move.reader, stage=Reading.ELECTED)
        yield replace(move, reader=elected, at_server=True)
    if not won:
        passed = replace(reader, stage=Reading.PASSED_OVER)
        yield ReaderMove("is not elected", world, passed, at_server=True)

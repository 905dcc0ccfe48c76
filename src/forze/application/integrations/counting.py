"""What every counter adapter shares: arguments checked, bounds turned into one comparison.

A bound on the new value is a limit on the old one, ``old <= maximum - by`` (or ``old >=
minimum - by`` on the way down), computed here without rounding. An adapter only compares
and adds, which a script can do on decimal text; the ends of the 64-bit range are bounds too.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Hashable
from datetime import timedelta
from typing import NamedTuple

from forze.application.contracts.counter import INT64_MAX, INT64_MIN, CounterSpec
from forze.application.contracts.deps import Resolver
from forze.application.integrations.id_blocks import IdBlocks
from forze.errors import ValidationError

OPERATION_CHARACTERS = 255


class Change(NamedTuple):
    """``by`` is added if the old value is not beyond ``limit`` (None: it cannot be).

    ``limit`` is the most the old value may be where ``by`` is above zero, the least where it
    is below.
    """

    by: int
    limit: int | None

    def fits(self, old: int) -> bool:
        """Whether it may be added to ``old``."""
        if self.limit is None:
            return True
        return old <= self.limit if self.by > 0 else old >= self.limit


class Operation(NamedTuple):
    """The caller's name for one change, and what it was asked to do."""

    id: str
    what: str


class Counting(ABC):
    """Implements ``CounterPort`` on three primitives of an adapter."""

    def __init__(self, spec: CounterSpec, resolver: Resolver) -> None:
        self._spec = spec
        self._resolver = resolver
        self._bounded = spec.minimum is not None or spec.maximum is not None
        self._operation_ms = spec.operation_ttl // timedelta(milliseconds=1)

    async def incr(
        self, suffix: str | None = None, by: int = 1, *, operation_id: str | None = None
    ) -> int:
        """Add ``by``; the new value."""
        signed = self._amount("by", by)
        return await self._change("incr", suffix, signed, operation_id)

    async def decr(
        self, suffix: str | None = None, by: int = 1, *, operation_id: str | None = None
    ) -> int:
        """Subtract ``by``; the new value."""
        signed = self._amount("by", by, negated=True)
        return await self._change("decr", suffix, signed, operation_id)

    async def incr_batch(
        self, count: int, suffix: str | None = None, *, operation_id: str | None = None
    ) -> int:
        """Add ``count``; the last of the block."""
        return await self._change("incr_batch", suffix, self._count(count), operation_id)

    async def allocate(
        self, count: int, suffix: str | None = None, *, operation_id: str | None = None
    ) -> range:
        """Add ``count``; the block."""
        last = await self._change("allocate", suffix, self._count(count), operation_id)
        return range(last - count + 1, last + 1)

    async def reset(self, suffix: str | None = None, value: int = 0) -> None:
        """Make it ``value``."""
        value = self._amount("value", value)
        if not self._spec.lowest <= value <= self._spec.highest:
            raise ValidationError(
                f"{self._named(suffix)}: {value} is not within its bounds, {self._spec.lowest} "
                f"to {self._spec.highest}",
                field="value",
            )
        await self._set(self._address(suffix), value)

    async def get(self, suffix: str | None = None) -> int:
        """The value now."""
        return await self._read(self._address(suffix), suffix)

    def allocator(self, block: int = 1000, suffix: str | None = None) -> IdBlocks:
        """An allocator that takes ``block`` ids per round trip."""
        return IdBlocks(
            lambda count: self.allocate(count, suffix),
            lambda: self._scope(suffix),
            self._resolver,
            block=self._count(block, "block"),
        )

    # -- the adapter's ---------------------------------------------------------

    @abstractmethod
    def _address(self, suffix: str | None) -> str:
        """Where the counter is kept, under the bound tenant."""

    @abstractmethod
    async def _add(
        self, address: str, suffix: str | None, change: Change, operation: Operation | None
    ) -> int:
        """Add, and answer the new value; or refuse, with :meth:`_beyond` and its like."""

    @abstractmethod
    async def _set(self, address: str, value: int) -> None:
        """Write the value."""

    @abstractmethod
    async def _read(self, address: str, suffix: str | None) -> int:
        """The value; 0 where there is none."""

    def _scope(self, suffix: str | None) -> Hashable:
        """What tells apart the counters that ``suffix`` can mean: ids of one are not another's."""
        return self._address(suffix)

    # -- arguments and refusals ------------------------------------------------

    async def _change(self, what: str, suffix: str | None, by: int, operation: str | None) -> int:
        named = None if operation is None else self._operation(what, by, operation)
        limit = None
        if by:
            limit = (self._spec.highest if by > 0 else self._spec.lowest) - by
        return await self._add(self._address(suffix), suffix, Change(by, limit), named)

    def _amount(self, field: str, value: object, *, negated: bool = False) -> int:
        if not isinstance(value, int) or isinstance(value, bool):
            raise ValidationError(
                f"counter {self._spec.name!r}: {field} must be an integer, not {value!r} "
                f"({type(value).__name__})",
                field=field,
            )
        signed = -int(value) if negated else int(value)
        if not INT64_MIN <= signed <= INT64_MAX:
            raise ValidationError(
                f"counter {self._spec.name!r}: {field}={value} does not fit 64 bits; counters "
                f"go from {INT64_MIN} to {INT64_MAX}",
                field=field,
            )
        return signed

    def _count(self, value: object, field: str = "count") -> int:
        count = self._amount(field, value)
        if count < 1:
            raise ValidationError(
                f"counter {self._spec.name!r}: {field} must be at least 1, not {count}",
                field=field,
            )
        return count

    def _operation(self, what: str, by: int, id: object) -> Operation:
        if not isinstance(id, str) or not 0 < len(id) <= OPERATION_CHARACTERS:
            raise ValidationError(
                f"counter {self._spec.name!r}: operation_id must be text of 1 to "
                f"{OPERATION_CHARACTERS} characters, not {id!r}",
                field="operation_id",
            )
        return Operation(id, f"{what} {by}")

    def _named(self, suffix: str | None) -> str:
        name = f"counter {self._spec.name!r}"
        return name if suffix is None else f"{name}, suffix {suffix!r}"

    def _beyond(self, suffix: str | None, change: Change, old: int | None) -> ValidationError:
        bound = self._spec.highest if change.by > 0 else self._spec.lowest
        holds = "it was" if old is None else f"it is, at {old}"
        return ValidationError(
            f"{self._named(suffix)}: adding {change.by} would take it beyond {bound}; "
            f"it is left as {holds}",
            field="by",
        )

    def _other_operation(
        self, suffix: str | None, operation: Operation, before: str
    ) -> ValidationError:
        return ValidationError(
            f"{self._named(suffix)}: operation_id {operation.id!r} was used for {before!r} and "
            f"cannot be for {operation.what!r}; a new operation needs a new id",
            field="operation_id",
        )

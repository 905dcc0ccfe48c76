"""A run of ids as one string of bytes, from which the server can cut out a page.

::

    FRS1 {kind} {total, 10 digits} {truncated, 0 or 1} {bytes of fingerprint, 6 digits}
    {fingerprint} {index} {ids}          (without the spaces)

UUIDs (kind ``u``; ``U`` where they came as their canonical text) take 16 bytes each, 64-bit
integers (``i``) 8, and no index: an id stands where its number says. Anything else, mixed
types included, is kind ``v``: the index has the offset of each id and the end of the last,
4 bytes each, and each id begins with a letter for its type.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Sequence
from contextlib import suppress
from itertools import accumulate, pairwise
from typing import NamedTuple
from uuid import UUID

from pydantic import TypeAdapter

from forze.application.contracts.search import ResultId
from forze.application.integrations.snapshotting import Run
from forze.errors import ValidationError

MAX_BYTES = 256 * 1024 * 1024
"""Half of what a string on the server can hold."""

_HEADER = re.compile(rb"FRS1[uUiv](\d{10})([01])\d{6}")
_uuids: TypeAdapter[list[UUID]] = TypeAdapter(list[UUID])
"""Makes them of 16 bytes each in a quarter of the time that ``UUID(bytes=...)`` takes."""

_is_canonical = re.compile(r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}").fullmatch


class Header(NamedTuple):
    """What a header says."""

    total: int
    truncated: bool


def pack_run(run: Run) -> bytes:
    """The run as it is stored; raises ``ValidationError`` for one above 256 MiB."""
    kind, body = _packed(run.ids)
    fingerprint = run.fingerprint.encode(errors="surrogatepass")
    header = f"FRS1{kind}{len(run.ids):010d}{run.truncated:d}{len(fingerprint):06d}".encode()
    packed = b"".join((header, fingerprint, *body))
    if len(packed) > MAX_BYTES:
        raise ValidationError(
            f"the ids of the run take {len(packed)} bytes, above {MAX_BYTES}; freeze fewer "
            "(max_ids), or shorter ones",
            field="ordered_ids",
        )
    return packed


def unpack_header(header: bytes) -> Header | None:
    """What the header says; None if it is none."""
    found = _HEADER.fullmatch(header)
    return None if found is None else Header(int(found[1]), found[2] == b"1")


def unpack_page(kind: bytes, index: bytes, page: bytes) -> list[ResultId]:
    """The ids of a page; ``index`` (kind ``v``) has their offsets and the end of the last."""
    if kind == b"i":
        return list(struct.unpack(f">{len(page) // 8}q", page))
    if kind == b"v":
        offsets = struct.unpack(f">{len(index) // 4}I", index)
        pairs = pairwise(offsets)
        return [_loaded(page[at - offsets[0] : end - offsets[0]]) for at, end in pairs]
    ids = [page[at : at + 16] for at in range(0, len(page), 16)]
    if kind == b"u":
        return [*_uuids.validate_python(ids)]
    return [_text(each.hex()) for each in ids]


def _packed(ids: Sequence[ResultId]) -> tuple[str, tuple[bytes, ...]]:
    kinds = {type(each) for each in ids}
    if kinds == {UUID}:
        return "u", (b"".join(each.bytes for each in ids),)  # type: ignore[union-attr]
    if kinds == {int}:
        with suppress(struct.error):  # one of them takes more than 64 bits
            return "i", (struct.pack(f">{len(ids)}q", *ids),)
    if kinds == {str} and all(map(_is_canonical, ids)):  # type: ignore[arg-type]
        return "U", (bytes.fromhex("".join(ids).replace("-", "")),)  # type: ignore[arg-type]
    dumped = [_dumped(each) for each in ids]
    offsets = list(accumulate(map(len, dumped), initial=0))
    if offsets[-1] > MAX_BYTES:
        offsets = [0]  # refused for its size in a moment; larger offsets could not be packed
    return "v", (struct.pack(f">{len(offsets)}I", *offsets), *dumped)


def _dumped(id: ResultId) -> bytes:
    if isinstance(id, UUID):
        return b"u" + id.bytes
    if isinstance(id, str):
        return b"t" + id.encode(errors="surrogatepass")
    return b"i%d" % id


def _loaded(dumped: bytes) -> ResultId:
    kind, rest = dumped[:1], dumped[1:]
    if kind == b"u":
        return UUID(bytes=rest)
    return int(rest) if kind == b"i" else rest.decode(errors="surrogatepass")


def _text(digits: str) -> str:
    parts = digits[:8], digits[8:12], digits[12:16], digits[16:20], digits[20:]
    return "-".join(parts)

"""Which of the 16384 slots of a cluster is a command for? Pure.

A key's slot is the CRC16 of its hash tag (what stands between the first ``{`` and the next
``}``) or, where there is none, of all of it. :func:`slot_of` finds the first key of a packed
command where the server would; that the others share its slot is for the server to check.

Redis Cluster specification, "Keys distribution model".
"""

from __future__ import annotations

import re
from binascii import crc_hqx  # CRC-16/XMODEM, the cluster's
from collections.abc import Sequence

from forze_redis.wire.connection import Reply

SLOTS = 16384

_SCRIPT_HEAD = re.compile(
    rb"\*\d+\r\n\$7\r\nEVALSHA\r\n\$40\r\n[0-9a-f]{40}\r\n\$\d+\r\n(\d+)\r\n(?:\$(\d+)\r\n)?"
)
_PREFIX_BYTES = 160  # the head of a command is within them

_KEYLESS = frozenset(
    b"ACL ASKING AUTH BGREWRITEAOF BGSAVE CLIENT CLUSTER COMMAND CONFIG DBSIZE DEBUG ECHO "
    b"FLUSHALL FLUSHDB FUNCTION HELLO INFO KEYS LASTSAVE LATENCY LOLWUT MODULE PING PSUBSCRIBE "
    b"PUBLISH PUBSUB RANDOMKEY ROLE SAVE SCAN SCRIPT SLOWLOG SUBSCRIBE TIME WAIT WAITAOF".split()
)
_COUNTED = frozenset(b"EVAL EVALSHA EVAL_RO EVALSHA_RO FCALL FCALL_RO BLMPOP BZMPOP".split())
"""``name argument numkeys key ...``"""

_COUNTED_FIRST = frozenset(b"LMPOP ZMPOP SINTERCARD ZINTER ZINTERCARD ZUNION ZDIFF".split())
"""``name numkeys key ...``"""

_STREAMS = frozenset((b"XREAD", b"XREADGROUP"))
"""``name ... STREAMS key ...``"""

_NAMED = frozenset(b"OBJECT XINFO XGROUP BITOP".split())
"""``name subcommand key ...``"""


def slot_of_key(key: bytes) -> int:
    """The slot of a key."""
    opened = key.find(b"{")
    if opened >= 0:
        closed = key.find(b"}", opened + 1)
        if closed > opened + 1:
            key = key[opened + 1 : closed]
    return crc_hqx(key, 0) & 0x3FFF


def slot_of(packed: bytes) -> int | None:
    """The slot of a packed command, None for one without a key: any node will do."""
    script = _SCRIPT_HEAD.match(packed, 0, _PREFIX_BYTES)
    if script is None:
        key = _first_key(_Arguments(packed))
        return None if key is None else slot_of_key(key)
    count, length = script.groups()
    if count == b"0" or length is None:
        return None
    start = script.end()
    return slot_of_key(packed[start : start + int(length)])


class _Arguments:
    """The arguments of a packed command, looked at one after the other and no further."""

    __slots__ = ("_at", "_packed", "count")

    def __init__(self, packed: bytes) -> None:
        head = packed.index(b"\r\n")
        self._packed = packed
        self._at = head + 2
        self.count = int(packed[1:head])

    def next(self) -> bytes:
        """The next one; b"" behind the last."""
        packed, at = self._packed, self._at
        head = packed.find(b"\r\n", at)
        if head < 0:
            return b""
        start = head + 2
        end = start + int(packed[at + 1 : head])
        self._at = end + 2
        return packed[start:end]


def _first_key(args: _Arguments) -> bytes | None:
    name = args.next().upper()
    if name in _KEYLESS or args.count < 2:
        return None
    first = args.next()
    if name in _COUNTED:
        return (args.next() or None) if args.next() not in (b"", b"0") else None
    if name in _COUNTED_FIRST or name in _NAMED or (name == b"MEMORY" and first == b"USAGE"):
        return args.next() or None
    if name in _STREAMS:
        while first and first.upper() != b"STREAMS":
            first = args.next()
        return args.next() or None
    return None if name == b"MEMORY" else first


Range = tuple[int, int, str, int]
"""First and last slot, host and port of the primary."""


def ranges_of(reply: Reply, asked: str) -> tuple[Range, ...]:
    """CLUSTER SLOTS of the node at host ``asked``; raises ``ValueError`` for what is none."""
    try:
        return tuple(
            (int(first), int(last), _host(node[0], asked), int(node[1]))
            for first, last, node, *_ in reply
        )
    except (TypeError, ValueError, IndexError, AttributeError) as error:
        raise ValueError(f"no answer to CLUSTER SLOTS: {reply!r}") from error


def _host(told: bytes | None, asked: str) -> str:
    """A node that does not know its own name is where it was asked."""
    return asked if told in (None, b"", b"?") else told.decode()


def epoch_of(info: Reply) -> int:
    """How recent a node's view of the cluster is, by its CLUSTER INFO."""
    found = re.search(rb"cluster_current_epoch:(\d+)", info) if isinstance(info, bytes) else None
    return int(found[1]) if found else -1


def own_row(table: bytes) -> str:
    """What a node says of itself in CLUSTER NODES: its epoch and slots, those on the move in
    brackets."""
    rows = (row.split(" ") for row in table.decode().splitlines())
    return next(" ".join((row[0], row[6], *row[8:])) for row in rows if "myself" in row[2])


def settled(rows: Sequence[str]) -> bool:
    """Whether nodes with these rows have every slot between them, none of them on the move."""
    ranges = [part for row in rows for part in row.split(" ")[2:]]
    if any(part.startswith("[") for part in ranges):
        return False
    ends = (part.partition("-") for part in ranges)
    return sum(int(last or first) - int(first) + 1 for first, _, last in ends) == SLOTS

"""A cluster of real nodes: slots that move, primaries that die, replicas that take over.

The nodes are servers as in :mod:`forze.testing.servers`. They are told of each other before
they start, so that all there is to wait for is the second or two that a node takes for
itself before it serves. What blocks is bounded by twenty seconds.
"""

from __future__ import annotations

import socket
import subprocess
import time
from collections.abc import Callable
from contextlib import ExitStack
from secrets import token_hex
from typing import Self
from urllib.parse import quote

from forze.errors import BackendUnavailable, ConfigurationError
from forze.testing.servers import RespServer, Server, ValkeyServer

SLOTS = 16384
_ANY = ("127.0.0.1", 0)
_STARTS = 3
_WAIT_SECONDS = 20.0
_MOVED_AT_ONCE = 100
_PROMPT = ("--repl-diskless-sync-delay", "0")


class Node(RespServer):
    """One node of a :class:`Cluster`; ``kind`` tells whose binary runs. Empty after a restart."""

    name = "Node"

    def __init__(self, kind: type[RespServer], *options: str, password: str | None = None) -> None:
        super().__init__(*options, password=password)
        self.id = token_hex(20)
        self.place = ""
        self.table = ""
        self._kind = kind
        self._bus_port = 0
        self._paused = False

    @staticmethod
    def executable() -> str | None:
        """A binary that can be a node."""
        return ValkeyServer.executable()

    def reserve(self) -> None:
        """Choose both ports, without starting."""
        with socket.create_server(_ANY) as port, socket.create_server(_ANY) as bus:
            self._port, self._bus_port = port.getsockname()[1], bus.getsockname()[1]
        self.place = f"127.0.0.1:{self._port}@{self._bus_port}"

    @property
    def knows_shards(self) -> bool:
        """Whether its table of nodes tells who belongs together (from Redis 7.2 on)."""
        said = subprocess.run(
            [str(self._kind.executable()), "--version"], capture_output=True, check=False
        )
        return b" v=7.0." not in said.stdout

    @property
    def answers(self) -> bool:
        """Whether it runs and is not paused."""
        return self.running and not self._paused

    def pause(self) -> None:
        """SIGSTOP: connections stay open and nothing is answered."""
        self._paused = True
        super().pause()

    def resume(self) -> None:
        """SIGCONT: goes on after :meth:`pause`, with what was sent meanwhile."""
        self._paused = False
        super().resume()

    def _prepare(self) -> None:
        (self.directory / "nodes.conf").write_text(self.table)

    def _spawn(self) -> None:
        self._paused = False
        Server._spawn(self)  # the others were told of this port: no other will do

    def _command(self) -> list[str]:
        binary = self._kind.executable()
        if binary is None:
            raise ConfigurationError(f"{self._kind.name} is not installed; no cluster can run")
        return [binary, *super()._command()[1:], "--cluster-port", str(self._bus_port)]


class Cluster:
    """``primaries`` nodes that share the slots, with ``replicas`` each; a context manager.

    It can be treated as one server (:meth:`ask`, :meth:`kill`, :meth:`pause`, :meth:`restart`:
    each node), and each of :attr:`nodes` by itself. A node that does not answer counts as
    failed after ``node_timeout_ms``; what the others then do with their own slots depends on
    ``full_coverage``. No replica takes over unless it is told to (:meth:`failover`).
    """

    def __init__(
        self,
        kind: type[RespServer] = ValkeyServer,
        *options: str,
        primaries: int = 3,
        replicas: int = 0,
        password: str | None = None,
        full_coverage: bool = False,
        node_timeout_ms: int = 1000,
    ) -> None:
        self._kind = kind
        self._password = password
        settings: tuple[str, ...] = (
            *("--cluster-enabled", "yes", "--cluster-config-file", "nodes.conf"),
            *("--cluster-node-timeout", str(node_timeout_ms)),
            *("--cluster-require-full-coverage", "yes" if full_coverage else "no"),
            *("--cluster-replica-no-failover", "yes", *_PROMPT),
        )
        if password is not None:
            settings = (*settings, "--masterauth", password)
        self.nodes = [
            Node(kind, *settings, *options, password=password)
            for _ in range(primaries * (1 + replicas))
        ]
        self._primaries = primaries
        self._running = ExitStack()

    def __enter__(self) -> Self:
        for attempt in range(_STARTS):  # somebody may take a port between choice and use
            try:
                self._start_all()
            except BackendUnavailable:
                if attempt == _STARTS - 1:
                    raise
            else:
                break
        return self

    def __exit__(self, *_: object) -> None:
        self._running.close()

    @property
    def dsn(self) -> str:
        """Where clients connect: every node is named."""
        user = f":{quote(self._password, safe='')}@" if self._password is not None else ""
        return f"redis+cluster://{user}{','.join(f'127.0.0.1:{n.port}' for n in self.nodes)}"

    # -- as one server ---------------------------------------------------------

    def ask(self, *args: str) -> bytes:
        """Send one command to each primary that runs; the last one's raw reply."""
        reply = b""
        for node in self.primaries:
            reply = node.ask(*args)
        return reply

    def kill(self) -> None:
        """SIGKILL, every node."""
        for node in self.nodes:
            node.kill()

    def pause(self) -> None:
        """SIGSTOP, every node."""
        for node in self.nodes:
            node.pause()

    def resume(self) -> None:
        """SIGCONT, every node."""
        for node in self.nodes:
            node.resume()

    def start(self) -> Self:
        """Start the nodes that do not run, and return when every slot is served."""
        for node in self.nodes:
            node.start()
        self.wait_until_ok()
        return self

    def restart(self, *, keep_data: bool = False) -> Self:
        """Stop and start every node at the same addresses; return when every slot is served."""
        for node in self.nodes:
            node.restart(keep_data=keep_data)
        self.wait_until_ok()
        return self

    # -- slots -----------------------------------------------------------------

    @property
    def primaries(self) -> list[Node]:
        """The nodes that serve slots and answer."""
        owners = _owners(self._ranges())
        return [node for node in self.nodes if node.answers and node.port in owners]

    def slot(self, key: str) -> int:
        """The slot of ``key``."""
        return int(self._asked().ask("CLUSTER", "KEYSLOT", key)[1:])

    def owner(self, key_or_slot: str | int) -> Node:
        """The primary of a key, or of a slot."""
        slot = self.slot(key_or_slot) if isinstance(key_or_slot, str) else key_or_slot
        for first, last, port in self._ranges():
            if first <= slot <= last:
                return self._at(port)
        raise ConfigurationError(f"nobody serves slot {slot}; start() the cluster")

    def other(self, node: Node) -> Node:
        """A primary that is not ``node``."""
        return next(each for each in self.primaries if each is not node)

    def replica_of(self, primary: Node) -> Node:
        """A running replica of ``primary``."""
        replicas = {row[0] for row in _table(self._asked()) if row[3] == primary.id}
        for node in self.nodes:
            if node.id in replicas and node.answers:
                return node
        raise ConfigurationError("there is no such replica; ask for replicas=1")

    def begin_move(self, slot: int, target: Node) -> None:
        """Open a slot for its move: what is there is moved bit by bit, what is not is ASKed for."""
        source = self.owner(slot)
        _ok(target.ask("CLUSTER", "SETSLOT", str(slot), "IMPORTING", source.id))
        _ok(source.ask("CLUSTER", "SETSLOT", str(slot), "MIGRATING", target.id))

    def move_keys(self, slot: int, target: Node, *keys: str) -> None:
        """Move ``keys`` of an open slot, or all there are."""
        source = self.owner(slot)
        auth = ("AUTH", self._password) if self._password is not None else ()
        while found := keys or _words(
            source.ask("CLUSTER", "GETKEYSINSLOT", str(slot), str(_MOVED_AT_ONCE))
        ):
            to = ("127.0.0.1", str(target.port), "", "0", "5000")
            reply = source.ask("MIGRATE", *to, "REPLACE", *auth, "KEYS", *found)
            if not reply.startswith((b"+OK", b"+NOKEY")):
                raise BackendUnavailable(f"MIGRATE: {reply!r}", backend=self._kind.name)
            if keys:
                return

    def end_move(self, slot: int, target: Node) -> None:
        """Close an open slot: it is ``target``'s from now on."""
        others = [node for node in self.primaries if node is not target]
        for node in (target, *others):
            _ok(node.ask("CLUSTER", "SETSLOT", str(slot), "NODE", target.id))

    def move(self, slot: int, target: Node) -> None:
        """Move a slot with all its keys."""
        self.begin_move(slot, target)
        self.move_keys(slot, target)
        self.end_move(slot, target)

    # -- nodes -----------------------------------------------------------------

    def failover(self, primary: Node) -> Node:
        """Make a replica of ``primary``, which may be dead, take its slots; that replica."""
        promoted = self.replica_of(primary)
        _ok(promoted.ask("CLUSTER", "FAILOVER", "TAKEOVER"))
        others = [node for node in self.nodes if node.answers and node is not primary]
        self._until(
            lambda: all(promoted.port in _owners(_slots(node)) for node in others),
            "follow the failover",
        )
        return promoted

    def wait_until_ok(self) -> None:
        """Return when every node that answers is content, and the replicas are in step."""
        running = [node for node in self.nodes if node.answers]
        self._until(
            lambda: all(
                b"cluster_state:ok" in node.ask("CLUSTER", "INFO")
                and b"master_link_status:down" not in node.ask("INFO", "replication")
                for node in running
            ),
            "be well",
        )

    def wait_until_failed(self, node: Node) -> None:
        """Return when the others count ``node`` as failed."""
        others = [each for each in self.nodes if each is not node and each.answers]

        def failed(table: list[list[str]]) -> bool:
            return any(row[0] == node.id and "fail" in row[2].split(",") for row in table)

        self._until(lambda: all(failed(_table(each)) for each in others), "see a node fail")

    def _start_all(self) -> None:
        with ExitStack() as starting:
            for node in self.nodes:
                node.reserve()
            for node in self.nodes:
                node.table = self._table_of(node)
                starting.enter_context(node)
            self.wait_until_ok()
            self._running = starting.pop_all()

    def _at(self, port: int) -> Node:
        return next(node for node in self.nodes if node.port == port)

    def _ranges(self) -> list[tuple[int, int, int]]:
        return _slots(self._asked())

    def _asked(self) -> Node:
        for node in self.nodes:
            if node.answers:
                return node
        raise ConfigurationError("no node of the cluster is running; start() it")

    def _table_of(self, reader: Node) -> str:
        """The table of nodes that ``reader`` starts with."""
        lines, count, shards = [], self._primaries, reader.knows_shards
        for at, node in enumerate(self.nodes):
            primary = self.nodes[at % count]
            place = f"{node.place},,tls-port=0,shard-id={primary.id}" if shards else node.place
            role = "master" if at < count else "slave"
            role = f"myself,{role}" if node is reader else role
            above = "-" if node is primary else primary.id
            line = f"{node.id} {place} {role} {above} 0 0 {at % count + 1} connected"
            if node is primary:
                line += f" {SLOTS * at // count}-{SLOTS * (at + 1) // count - 1}"
            lines.append(line)
        return "\n".join([*lines, f"vars currentEpoch {len(self.nodes)} lastVoteEpoch 0", ""])

    def _until(self, met: Callable[[], bool], what: str) -> None:
        deadline = time.monotonic() + _WAIT_SECONDS
        while not met():
            if time.monotonic() > deadline:
                raise BackendUnavailable(
                    f"the cluster came not to {what} within {_WAIT_SECONDS:g} s",
                    backend=self._kind.name,
                )
            time.sleep(0.02)


class ValkeyCluster(Cluster):
    """A :class:`Cluster` of Valkey nodes."""


def _table(node: Node) -> list[list[str]]:
    """The rows of CLUSTER NODES: id, place, flags, primary, and from the ninth on slots."""
    lines = node.ask("CLUSTER", "NODES").decode().splitlines()
    return [line.split(" ") for line in lines if line.count(" ") >= 7]


def _slots(node: Node) -> list[tuple[int, int, int]]:
    """``(first, last, port)`` of each range, as ``node`` sees it."""
    ranges = []
    for row in _table(node):
        port = int(row[1].partition("@")[0].rpartition(":")[2])
        for part in row[8:]:
            first, _, last = part.partition("-")
            if first.isdigit():  # else a slot on the move
                ranges.append((int(first), int(last or first), port))
    return ranges


def _owners(ranges: list[tuple[int, int, int]]) -> set[int]:
    return {port for _, _, port in ranges}


def _words(reply: bytes) -> list[str]:
    """The bulk strings of a raw array."""
    return [each.decode() for each in reply.split(b"\r\n")[2::2]]


def _ok(reply: bytes) -> None:
    if not reply.startswith(b"+OK"):
        raise BackendUnavailable(f"the node answered {reply!r}", backend="cluster")

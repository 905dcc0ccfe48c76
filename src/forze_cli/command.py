"""The commands, their options, and what they say."""

from __future__ import annotations

import os
import shlex
import shutil
import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Annotated

import typer

from forze.errors import ForzeError, ValidationError
from forze_cli.names import check_name
from forze_cli.origin import forze_requirement
from forze_cli.placing import free_place, place
from forze_cli.project import Parts, Project, load_renderer, render
from forze_cli.serving import serve
from forze_cli.signals import ENDING, Interruptions, answered_by

app = typer.Typer(no_args_is_help=True, pretty_exceptions_enable=False)

PARTS = {
    "redis": "Redis or Valkey: cached responses, rate limits",
    "celery": "Celery: background and scheduled tasks (its broker is Redis or Valkey)",
    "docker": "Docker: an image, and a compose file with all that it needs",
    "database": "PostgreSQL: documents",
    "auth": "Sign-in: users with passwords, who sign in and out",
}
USUAL = Parts(redis=True)
"""What is in without being asked for."""
TOOLS = {"uv": "uv", "just": "rust-just"}


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"forze {version('forze')}")
        raise typer.Exit


@app.callback()
def forze(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_print_version, is_eager=True, help="Say which."),
    ] = False,
) -> None:
    """New projects on forze, and servers for the length of a command."""


@app.command()
def new(
    name: Annotated[
        str | None, typer.Argument(help="Of the project and of its folder.", show_default=False)
    ] = None,
    redis: Annotated[bool | None, typer.Option(help=PARTS["redis"], show_default=False)] = None,
    celery: Annotated[bool | None, typer.Option(help=PARTS["celery"], show_default=False)] = None,
    docker: Annotated[bool | None, typer.Option(help=PARTS["docker"], show_default=False)] = None,
    database: Annotated[
        bool | None, typer.Option(help=PARTS["database"], show_default=False)
    ] = None,
    auth: Annotated[bool | None, typer.Option(help=PARTS["auth"], show_default=False)] = None,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Ask nothing: with Redis.")] = False,
    into: Annotated[Path, typer.Option(help="The folder to make it in.")] = Path(),
) -> None:
    """Make a project: a FastAPI application, its tests, and what is asked for.

    With any part named, or without a terminal, nothing is asked, and what is not named is out.
    """
    named = {"redis": redis, "celery": celery, "docker": docker, "database": database, "auth": auth}
    interruptions = Interruptions()
    with answered_by(interruptions.answer, ENDING), _errors("forze new"):
        name = check_name(name if name is not None else _ask_name())
        target = free_place(into, name)
        project = Project(
            name=name, parts=_parts(named, yes), forze_requirement=forze_requirement("{extras}")
        )
        with _progress(f"making {name} ..."):
            load_renderer()
            interruptions.hold()  # for a fraction of a second something half made is there
            place(target, partial(render, project), interruptions.check)
        _say_what_next(project, target)


@app.command(
    context_settings={"allow_interspersed_args": False},
    epilog="In a project: uv run forze servers --redis --postgres -- uvicorn app.main:app",
)
def servers(
    command: Annotated[list[str], typer.Argument(help="What to run, and its arguments.")],
    redis: Annotated[bool, typer.Option("--redis", help="Valkey at REDIS_CONNECTION_URL.")] = False,
    celery: Annotated[
        bool, typer.Option("--celery", help="Valkey at CELERY_BROKER_URL (the same server).")
    ] = False,
    postgres: Annotated[
        bool, typer.Option("--postgres", "--database", help="PostgreSQL at DATABASE_URL.")
    ] = False,
    override: Annotated[
        bool, typer.Option("--override", help="Also where the variable is set already.")
    ] = False,
) -> None:
    """Run a command with servers that are there for it and go with it.

    A server is started where its variable is not set, on a port of the system's choice; its
    data goes with it. The exit code is the command's.
    """
    wanted = [
        name
        for name, on in (
            ("REDIS_CONNECTION_URL", redis),
            ("CELERY_BROKER_URL", celery),
            ("DATABASE_URL", postgres),
        )
        if on
    ]
    if not wanted:
        raise typer.BadParameter("name a server: --redis, --celery, --postgres")
    with _errors("forze servers"):
        raise typer.Exit(serve(wanted, command, override=override, say=_say))


@contextmanager
def _errors(command: str) -> Iterator[None]:
    """What a user can do something about is said in a line, and the exit code is 1."""
    try:
        yield
    except ForzeError as error:
        _say(f"{command}: {error}")
        raise typer.Exit(1) from error


def _say(line: str) -> None:
    typer.echo(line, err=True)


def _can_ask() -> bool:
    """Whether somebody sees a question, and can answer it; a stream that is closed is None."""
    return all(each is not None and each.isatty() for each in (sys.stdin, sys.stderr))


def _ask_name() -> str:
    if not _can_ask():
        raise typer.BadParameter("say its name: forze new NAME")
    ask = partial(typer.prompt, default="", show_default=False)  # nothing is an answer, too
    return str(ask("Name of the project", err=True, value_proc=_answered_name))


def _answered_name(answer: str) -> str:
    try:
        return check_name(answer.strip())
    except ValidationError as error:
        raise typer.BadParameter(str(error)) from error  # and it is asked again


def _parts(named: dict[str, bool | None], yes: bool) -> Parts:
    if any(each is not None for each in named.values()):
        return Parts(**{part: bool(each) for part, each in named.items()})
    if yes:
        return USUAL
    if not _can_ask():
        return Parts()
    return Parts(**{part: _ask(part) for part in named})


def _ask(part: str) -> bool:
    return typer.confirm(PARTS[part], default=getattr(USUAL, part), err=True)


def _progress(doing: str) -> AbstractContextManager[object]:
    """On a terminal, ``doing`` with something that moves."""
    from rich.console import Console

    return Console(stderr=True).status(doing)


def _say_what_next(project: Project, target: Path) -> None:
    parts = ", ".join(project.parts.chosen()) or "nothing but FastAPI"
    lines = [f"made {project.name} with {parts}"]
    if not project.parts.chosen() and not _can_ask():
        lines += ["(what it can have: forze new --help)"]
    lines += [""]
    for command, purpose in (
        (f"cd {shlex.quote(os.path.relpath(target))}", ""),
        ("just dev", "serve it at http://127.0.0.1:8000, with the servers it needs"),
        ("just test", "run its tests"),
        ("just", "list what else there is"),
    ):
        lines.append(f"  {command:<12}{purpose}".rstrip())
    if missing := [package for tool, package in TOOLS.items() if shutil.which(tool) is None]:
        lines += ["", f"It is run by just and uv: python -m pip install {' '.join(missing)}"]
    _, _, origin = project.forze_requirement.partition(" @ ")
    if origin.startswith("file:"):
        lines += ["", f"Its pyproject.toml names the forze of this machine, {origin}:"]
        lines += ["name another place there before it goes elsewhere."]
    try:
        typer.echo("\n".join(lines))
    except (OSError, UnicodeError):  # nobody listens, and the project is there all the same
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115

"""What holds of every rendered project, whatever its parts: read and parsed, nothing started.

``python -m tests.cli.rendered FOLDER`` renders all 32 combinations into the folder, looks them
through, and exits with 1 if anything is wrong with them.
"""

from __future__ import annotations

import itertools
import json
import re
import sys
import tomllib
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml  # type: ignore[import-untyped,unused-ignore]

from forze_cli.project import Parts, Project, load_renderer, render

REQUIREMENT = f"forze[{{extras}}] @ {Path(__file__).resolve().parents[2].as_uri()}"

_JINJA = re.compile(r"\{[%#]|[%#]\}|\{\{.*\b(project_|forze_requirement|extras|redis|auth)\b")
_UNFINISHED = re.compile(r"\b(TO-?DO|FIX-?ME|XX-?X|lorem ipsum)\b", re.IGNORECASE)
_SECRET = re.compile(
    r"^\s*(ENV|ARG)\s.*(PASSWORD|SECRET|TOKEN|_KEY|://[^/\s]*:[^/\s]*@)", re.I | re.M
)
_FIXED_SECRET = re.compile(r"(PASSWORD|SECRET|TOKEN|AUTH)[A-Z_]*[:=] *\w|://[^/\s]*:[^/\s@]+@")
_BLANK = re.compile(r"\n{4,}|\A\n|\n\n\Z|[ \t]\n")
_WORDS = {
    "celery": r"celery",
    "docker": r"docker-compose|dockerfile",
    "database": r"asyncpg|postgres",
}
WANTED = (
    "app/__init__.py app/main.py app/core/settings.py app/api/health.py pyproject.toml justfile "
    "README.md .env.example .gitignore"
)


def every_combination() -> list[Parts]:
    """All 32."""
    names = Parts.names()
    product = itertools.product((False, True), repeat=len(names))
    return [Parts(**dict(zip(names, each, strict=True))) for each in product]


def name_of(parts: Parts) -> str:
    """A project's name that tells its parts."""
    return "-".join(["with", *parts.chosen()]) if parts.chosen() else "plain"


def main(directory: Path) -> int:
    """Render and check everything; the exit code."""
    load_renderer()
    wrong = []
    for parts in every_combination():
        name = name_of(parts)
        (directory / name).mkdir(parents=True)
        render(Project(name=name, parts=parts, forze_requirement=REQUIREMENT), directory / name)
        wrong += [f"{name}/{problem}" for problem in problems(directory / name, parts)]
    print("\n".join(wrong))
    return 1 if wrong else 0


def problems(directory: Path, parts: Parts) -> Iterator[str]:
    """Everything that is wrong with the project in ``directory``."""
    files = [each for each in sorted(directory.rglob("*")) if each.is_file()]
    for file in files:
        path = file.relative_to(directory)
        text = file.read_text("utf-8")
        yield from (f"{path}: {problem}" for problem in _in_text(path, text, parts))
        try:
            _parse(file, text)
        except (ValueError, SyntaxError, Warning, yaml.YAMLError) as error:
            yield f"{path}: {error}"
    there = {str(each.relative_to(directory)) for each in files}
    wanted = set(WANTED.split())
    optional = {
        "app/core/redis.py": parts.redis,
        "app/core/rate_limit.py": parts.redis,
        "app/core/sessions.py": parts.redis,
        "app/core/celery.py": parts.celery,
        "Dockerfile": parts.docker,
        ".dockerignore": parts.docker,
        "docker-compose.yml": parts.docker,
    }
    wanted |= {path for path, on in optional.items() if on}
    yield from (f"{path} is missing" for path in sorted(wanted - there))
    yield from (
        f"{path} is not asked for" for path, on in optional.items() if path in there and not on
    )
    if "docker-compose.yml" in there:
        compose = yaml.safe_load((directory / "docker-compose.yml").read_text("utf-8"))
        yield from (f"docker-compose.yml: {problem}" for problem in _in_compose(compose, parts))
    if {"Dockerfile", ".dockerignore"} <= there:
        ignored = (directory / ".dockerignore").read_text("utf-8").splitlines()
        if not {"*", ".env"} & set(ignored) or "!.env" in ignored:
            yield ".dockerignore: .env would be in the image"
        if "HEALTHCHECK" not in (directory / "Dockerfile").read_text("utf-8"):
            yield "Dockerfile: has no HEALTHCHECK"


def _in_text(path: Path, text: str, parts: Parts) -> Iterator[str]:
    if not text.strip() and path.name not in ("__init__.py", "py.typed"):
        yield "is empty"
    if _JINJA.search(f"{path}\n{text}"):
        yield "holds what should have been rendered"
    if found := _UNFINISHED.search(text):
        yield f"is unfinished: {found[0]}"
    if text and (_BLANK.search(text) or not text.endswith("\n")):
        yield "has stray blank space"
    if path.name == "Dockerfile" and _SECRET.search(text):
        yield "has a secret in the image"
    for part, words in _WORDS.items():
        used = re.search(words, text, re.IGNORECASE)
        if used and not getattr(parts, part):
            yield f"names {used[0]}, without {part}"
    if not (parts.redis or parts.celery) and re.search(r"redis|valkey", text, re.IGNORECASE):
        yield "names Redis, without it"


def _parse(file: Path, text: str) -> None:
    match file.suffix:
        case ".py":
            with warnings.catch_warnings():
                warnings.simplefilter("error")
                compile(text, file, "exec")
        case ".toml":
            tomllib.loads(text)
        case ".yml" | ".yaml":
            yaml.safe_load(text)
        case ".json":
            json.loads(text)


def _in_compose(compose: dict[str, Any], parts: Parts) -> Iterator[str]:
    """What `docker compose config` would refuse, and what our promises add to it."""
    services: dict[str, dict[str, Any]] = compose["services"]
    volumes, networks = compose.get("volumes") or {}, compose.get("networks") or {}
    for name, service in services.items():
        if not {"image", "build"} & service.keys():
            yield f"{name} has neither image nor build"
        depends = service.get("depends_on") or {}
        for other in depends:
            if other not in services:
                yield f"{name} depends on {other}, which is not there"
            elif "healthcheck" not in services[other] and "build" not in services[other]:
                yield f"{name} waits for {other}, which has no healthcheck"
        for volume in service.get("volumes", []):
            source = volume["source"] if isinstance(volume, dict) else volume.partition(":")[0]
            if source[0] not in "./~$" and source not in volumes:
                yield f"{name} uses the volume {source}, which is not declared"
        for network in service.get("networks", []):
            if network not in networks:
                yield f"{name} is in the network {network}, which is not declared"
    wanted = {"app": True, "redis": parts.redis or parts.celery, "postgres": parts.database,
              "worker": parts.celery, "beat": parts.celery}  # fmt: skip
    for name, on in wanted.items():
        if on is not (name in services):
            yield f"there is {'no' if on else 'a'} service {name}"
    for name in {"redis", "postgres"} & services.keys():
        if "healthcheck" not in services[name] or not services[name].get("volumes"):
            yield f"{name} needs a healthcheck and a volume"
    fixed = re.sub(r"\$\{[^}]*\}", "", yaml.safe_dump(compose))
    if _FIXED_SECRET.search(fixed):
        yield "has a password in it; it comes from the environment"


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))

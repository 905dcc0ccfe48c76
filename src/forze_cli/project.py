"""A new project: its answers, and the template rendered with them.

The template beside this module is one of `Copier <https://copier.readthedocs.io>`_. It runs no
code of its own (no tasks, no extensions: Copier refuses them here), needs no network and no Git.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass, fields
from pathlib import Path

from forze.errors import ConfigurationError
from forze_cli.names import check_name, slug_of

TEMPLATE = Path(__file__).with_name("template")
PYTHON_VERSION = "{}.{}".format(*sys.version_info)  # it is there, and projects run on one


@dataclass(frozen=True, slots=True, kw_only=True)
class Parts:
    """What goes into a project."""

    redis: bool = False
    celery: bool = False
    docker: bool = False
    database: bool = False
    auth: bool = False

    @classmethod
    def names(cls) -> list[str]:
        """Their names, in the order of the questions."""
        return [each.name for each in fields(cls)]

    def chosen(self) -> list[str]:
        """The names of those that are in."""
        return [name for name in self.names() if getattr(self, name)]


@dataclass(frozen=True, slots=True, kw_only=True)
class Project:
    """All that decides what is rendered; equal projects are equal files.

    ``forze_requirement`` has ``{extras}`` where the extras go.
    """

    name: str
    parts: Parts
    forze_requirement: str

    def __post_init__(self) -> None:
        check_name(self.name)

    def answers(self) -> dict[str, str | bool]:
        """What the template asks for."""
        return {
            "project_name": self.name,
            "project_slug": slug_of(self.name),
            "python_version": PYTHON_VERSION,
            "forze_requirement": self.forze_requirement,
            **{name: getattr(self.parts, name) for name in self.parts.names()},
        }


def load_renderer() -> None:
    """Import Copier, which takes about a second; ConfigurationError where it is not installed."""
    try:
        import copier  # noqa: F401
    except ModuleNotFoundError as error:
        raise ConfigurationError(
            f"forze new needs {error.name}, of an extra: python -m pip install 'forze[cli]'",
            name=error.name,
        ) from error


def render(project: Project, directory: Path) -> None:
    """Write ``project`` into ``directory``, an absolute path."""
    from copier import Settings, run_copy
    from plumbum import local  # by which Copier starts programs

    with local.env(PATH=""):  # but no Git, which takes the template for the repository of a GIT_DIR
        run_copy(
            str(TEMPLATE),
            directory,
            data=project.answers(),
            defaults=True,
            quiet=True,
            unsafe=False,
            overwrite=True,
            settings=Settings(),  # nobody's own defaults, nobody's trust
        )

"""The application of the document on Redis caching: `app.core`, as `forze new` writes it.

The modules stand in the template and are copied into a directory of the test's, so that they run
under the names that the document uses, in this process or in one of their own.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from types import ModuleType

import forze_cli

TEMPLATE = Path(forze_cli.__file__).parent / "template" / "project" / "app"
MODULES = {
    "core/redis.py": "core/{% if redis %}redis.py{% endif %}",
    "core/rate_limit.py": "core/{% if redis %}rate_limit.py{% endif %}",
    "core/sessions.py": "core/{% if redis %}sessions.py{% endif %}",
}
"""By the name that they have in a project: where they stand in the template."""


@contextmanager
def importable(directory: Path, dsn: str) -> Iterator[None]:
    """`app.core` can be imported, on the server at ``dsn``; it is forgotten afterwards."""
    for package in ("app", "app/core"):
        (directory / package).mkdir()
        (directory / package / "__init__.py").touch()
    for name, source in MODULES.items():
        shutil.copy(TEMPLATE / source, directory / "app" / name)
    before = os.environ.get("REDIS_CONNECTION_URL")
    os.environ["REDIS_CONNECTION_URL"] = dsn
    sys.path.insert(0, str(directory))
    theirs = _forgotten()
    try:
        yield
    finally:
        _forgotten()
        sys.modules.update(theirs)
        sys.path.remove(str(directory))
        os.environ.pop("REDIS_CONNECTION_URL")
        if before is not None:
            os.environ["REDIS_CONNECTION_URL"] = before


def core(name: str) -> ModuleType:
    """A module of `app.core`."""
    return import_module(f"app.core.{name}")


def elsewhere(directory: Path, program: str, *arguments: str) -> subprocess.Popen[str]:
    """``program`` in a process of its own, in which `app.core` can be imported as well."""
    paths = [str(directory), os.environ.get("PYTHONPATH", "")]
    return subprocess.Popen(
        [sys.executable, "-c", program, *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths))},
    )


def _forgotten() -> dict[str, ModuleType]:
    """The modules called `app`, which are not loaded any more."""
    names = [name for name in sys.modules if name == "app" or name.startswith("app.")]
    return {name: sys.modules.pop(name) for name in names}

"""Every module of many projects is imported, each project in a process of its own.

``python -m tests.cli.imported FOLDER`` does it for each project in the folder, and exits with 1
if anything went wrong or was warned of. The processes are forked from one that has loaded what
the projects use.
"""

from __future__ import annotations

import gc
import importlib
import os
import pkgutil
import sys
import traceback
import warnings
from pathlib import Path

LOADED_ONCE = (
    "fastapi pydantic_settings celery kombu.transport.redis redis.asyncio asyncpg argon2 jwt "
    "pydantic.networks forze_fastapi forze_redis.manager forze_postgres forze_celery"
)


def main(directory: Path) -> int:
    """Import them all; the exit code."""
    for each in LOADED_ONCE.split():
        importlib.import_module(each)
    gc.freeze()  # what was loaded once is nobody's garbage
    projects = sorted(each for each in directory.iterdir() if each.is_dir())
    wrong = [each.name for each in projects if _in_a_fork(each) != 0]
    print(f"{len(projects)} imported, wrong: {', '.join(wrong) or 'none'}")
    return 1 if wrong or not projects else 0


def _in_a_fork(project: Path) -> int:
    child = os.fork()
    if child:
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    try:
        import_all(project)
    except BaseException:
        traceback.print_exc()
        os._exit(1)
    os._exit(0)


def import_all(project: Path) -> None:
    """Import every module of the project's ``app``, in this process."""
    os.chdir(project)
    sys.path.insert(0, str(project))
    sys.dont_write_bytecode = True
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        package = importlib.import_module("app")
        for module in pkgutil.walk_packages(package.__path__, "app."):
            importlib.import_module(module.name)


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))

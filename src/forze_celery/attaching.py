"""A portal for a Celery application, alive as long as the process that runs its tasks.

::

    app = Celery("shop", broker=BROKER_URL)
    portal = attach_portal(app, build_runtime)

    @app.task
    @portal.sync
    async def confirm(ctx: ExecutionContext, order_id: str) -> None: ...

Celery's signals say when a message is published, a task runs, a process ends. They swallow what
their receivers raise, so a message is refused one step later, by the loader, which Celery asks
before each task; a task refused there has failed.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from datetime import timedelta
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

from celery import Celery, signals
from celery._state import connect_on_app_finalize

from forze.application.execution import ExecutionRuntime, Portal
from forze.errors import ConfigurationError, ValidationError
from forze_celery.failures import carry_errors
from forze_celery.passport import HEADER, Passport
from forze_celery.portal import TaskPortal


class _Attached(NamedTuple):
    runtime: Callable[[], ExecutionRuntime]
    drain: timedelta
    portal: Portal


_attached: WeakKeyDictionary[Celery, _Attached] = WeakKeyDictionary()


def attach_portal(
    app: Celery,
    runtime: Callable[[], ExecutionRuntime],
    *,
    drain: timedelta = timedelta(seconds=10),
) -> Portal:
    """The portal of ``app``: sync access to the ports, one in each process that asks for it.

    ``runtime`` makes the runtime; it is called by the first use in each process, so after the
    fork of a pool process, and in a process that only publishes never. The portal is closed with
    the process that runs the tasks, of whatever pool; ``drain`` is what calls under way are
    given then. Where the process is no worker, it is closed with the interpreter.

    From here on every message that this process publishes says which tenant and principal were
    bound, and a task has exactly those bound while it runs: none, where none were. A message
    whose header is malformed is not run; its task fails with ``ValidationError``.

    An error of forze that a task fails with is what ``AsyncResult.get()`` raises, with its data,
    where both the worker's application and the one that asks have a portal.

    The same call again gives the same portal; another runtime for the same application raises
    ``ConfigurationError``.
    """
    if not isinstance(app, Celery):
        raise ConfigurationError(f"attach_portal takes the Celery application, not {app!r}")
    given: object = runtime
    if isinstance(given, ExecutionRuntime) or not callable(given):
        raise ConfigurationError(
            "attach_portal takes the function that makes the runtime, because each process of a "
            f"pool needs its own, not {runtime!r}; for one that your module made: lambda: runtime",
            name="runtime",
        )
    app = getattr(app, "_get_current_object", lambda: app)()  # where it is ``current_app``
    known = _attached.get(app)
    if known is None:
        known = _Attached(runtime, drain, TaskPortal(runtime, name=_name(app), drain=drain))
        _attached[app] = known
        _connect(app)
    elif known[:2] != (runtime, drain):
        raise ConfigurationError(
            f"{app!r} has a portal already, of {known.runtime!r}; use that one: attach_portal is "
            "called once for an application"
        )
    return known.portal


def _name(app: Celery) -> str:
    return f"forze-portal-{app.main or 'celery'}"


def _connect(app: Celery) -> None:
    for signal, receiver in (
        (signals.before_task_publish, _stamp),
        (signals.task_prerun, _bind),
        (signals.task_postrun, _unbind),
        (signals.worker_process_shutdown, _close_all),
        (signals.worker_shutdown, _close),
    ):
        signal.connect(receiver)
    for prepare in (_refuse_malformed, carry_errors):
        prepare(app)
        # The processes of a pool that spawns instead of forking run a copy of the application.
        connect_on_app_finalize(prepare)


# -- messages and their tasks ------------------------------------------------


def _stamp(*, headers: dict[str, Any], **_: Any) -> None:
    """A message is about to be published. A retry has its header already."""
    if HEADER not in headers:
        headers[HEADER] = Passport.of_caller().header()


def _bind(*, task: Any, **_: Any) -> None:
    """A task is about to run."""
    request, refused = task.request, None
    headers = request.headers if isinstance(request.headers, dict) else {}
    header = headers.get(HEADER)
    if header is None and request.is_eager:
        return  # nothing was published: it runs where it was called, for whoever is bound there
    try:
        passport = Passport.read(header)
    except ValidationError as error:
        passport, refused = Passport(), error
    bound = passport.bound()
    bound.__enter__()
    request.headers = {**headers, HEADER: passport.header()}  # for its retries
    request.forze_run = _Run(bound, refused)


def _unbind(*, task: Any, **_: Any) -> None:
    """A task has run, and what follows from it is published."""
    run: _Run | None = getattr(task.request, "forze_run", None)
    if run is not None:
        run.bound.__exit__(None, None, None)


def _refuse_malformed(app: Celery) -> None:
    """Let the loader of ``app`` refuse before each task."""
    if not isinstance(app.loader.on_task_init, _Refusing):
        app.loader.on_task_init = _Refusing(app.loader.on_task_init)


class _Refusing:
    """What a loader does before each task, and the refusal of malformed headers."""

    def __init__(self, init: Callable[[str, Any], None]) -> None:
        self._init = init

    def __call__(self, task_id: str, task: Any) -> None:
        run: _Run | None = getattr(task.request, "forze_run", None)
        if run is not None and run.refused is not None:
            raise run.refused
        self._init(task_id, task)


class _Run(NamedTuple):
    """What is bound while a task runs, or why it must not."""

    bound: AbstractContextManager[None]
    refused: ValidationError | None


# -- processes ---------------------------------------------------------------


def _close_all(**_: Any) -> None:
    """A process of a pool ends, without ``atexit``."""
    for each in tuple(_attached.values()):
        each.portal.close()


def _close(*, sender: Any, **_: Any) -> None:
    """A worker ends."""
    known = _attached.get(sender.app)
    if known is not None:
        known.portal.close()

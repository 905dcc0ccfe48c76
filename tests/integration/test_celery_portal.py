"""A Celery application with a portal, in this process: what travels, what is refused, what ends."""

from __future__ import annotations

import inspect
import itertools
import pickle
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import pytest
from celery import Celery, signals
from celery.app.trace import build_tracer
from celery.concurrency.thread import TaskPool
from celery.exceptions import Retry, SecurityError
from tests.unit.test_errors import EVERY

from forze.application.contracts.tenancy import (
    bind_deadline,
    bind_principal,
    bind_tenant,
    current_deadline,
    current_principal,
    current_tenant,
)
from forze.application.execution import (
    DepsPlan,
    ExecutionContext,
    ExecutionRuntime,
    LifecyclePlan,
    LifecycleStep,
    Portal,
)
from forze.errors import BackendUnavailable, ConfigurationError, ForzeError, ValidationError
from forze_celery import attach_portal
from forze_celery.failures import KEY
from forze_celery.passport import HEADER, Passport
from forze_memory import MemoryDepsModule

WAIT = 20.0

_numbers = itertools.count(1)
ended: list[str] = []


def build_runtime() -> ExecutionRuntime:
    async def end(ctx: ExecutionContext) -> None:
        ended.append("portal")

    return ExecutionRuntime(
        deps=DepsPlan.from_modules(MemoryDepsModule()),
        lifecycle=LifecyclePlan.from_steps(LifecycleStep(id="end", shutdown=end)),
    )


def build_another() -> ExecutionRuntime:
    return build_runtime()


@pytest.fixture
def app() -> Iterator[Celery]:
    ended.clear()
    name = f"app{next(_numbers)}"  # brokers in memory are found by their name
    app = Celery(name, broker=f"memory://{name}", backend="cache+memory://", set_as_current=False)
    app.conf.update(task_default_queue=name, broker_transport_options={"polling_interval": 0.01})
    yield app
    app.pool.force_close_all()
    app.close()


@pytest.fixture
def portal(app: Celery) -> Iterator[Portal]:
    portal = attach_portal(app, build_runtime)
    yield portal
    portal.close()


def who(*_: Any) -> list[Any]:
    """Who is bound here, and whether until some time: a publisher's deadline stays behind."""
    return [current_tenant(), current_principal(), current_deadline() is not None]


NOBODY = [None, None, False]
Received = Callable[..., Any]


@pytest.fixture
def received() -> Received:
    """Runs a task as a worker does that has received it with these headers."""

    def run(task: Any, *args: Any, **headers: Any) -> Any:
        request = {"id": "1", "delivery_info": {}, "ignore_result": True, **headers}
        tracer = build_tracer(task.name, task, app=task.app)
        outcome: Any = []
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(
                task.backend, "mark_as_done", lambda _, result, *__: outcome.append(result)
            )
            traced = tracer("1", args, {}, request)
        if not outcome:
            raise traced.info.retval if traced.info else traced.retval.exception
        return outcome[0]

    return run


# -- attaching -----------------------------------------------------------------------


def test_an_application_has_one_portal(app: Celery, portal: Portal) -> None:
    assert attach_portal(app, build_runtime) is portal
    with pytest.raises(ConfigurationError, match="has a portal already"):
        attach_portal(app, build_another)
    with pytest.raises(ConfigurationError, match="has a portal already"):
        attach_portal(app, build_runtime, drain=timedelta(seconds=1))


def test_what_it_takes(app: Celery) -> None:
    wrong: Any = "shop"
    with pytest.raises(ConfigurationError, match="takes the Celery application"):
        attach_portal(wrong, build_runtime)
    ready: Any = build_runtime()
    with pytest.raises(ConfigurationError, match="lambda: runtime"):
        attach_portal(app, ready)


def test_nothing_is_started_by_publishing(app: Celery) -> None:
    made: list[str] = []

    def make() -> ExecutionRuntime:
        made.append("runtime")
        return build_runtime()

    attach_portal(app, make)
    app.task(who, shared=False, name="who").delay()
    assert made == []


# -- what travels --------------------------------------------------------------------


@contextmanager
def published() -> Iterator[list[dict[str, Any]]]:
    """The headers of the messages that are published in the block."""
    seen: list[dict[str, Any]] = []

    def look(*, headers: dict[str, Any], **_: Any) -> None:
        seen.append(headers)

    signals.after_task_publish.connect(look, weak=False, dispatch_uid="published")
    try:
        yield seen
    finally:
        signals.after_task_publish.disconnect(dispatch_uid="published")


def test_a_message_says_who_published_it(app: Celery, portal: Portal) -> None:
    task = app.task(who, shared=False, name="who")
    with published() as messages:
        with bind_tenant("acme"), bind_principal("ann"), bind_deadline(timedelta(seconds=9)):
            task.delay()
        task.delay()
    assert [each[HEADER] for each in messages] == [{"tenant": "acme", "principal": "ann"}, {}]


def test_who_says_it_himself_is_believed(app: Celery, portal: Portal) -> None:
    task = app.task(who, shared=False, name="who")
    with published() as messages, bind_tenant("acme"):
        task.apply_async(headers={HEADER: {"tenant": "other"}})
    assert [each[HEADER] for each in messages] == [{"tenant": "other"}]


def test_a_task_has_exactly_what_its_message_says(
    app: Celery, portal: Portal, received: Received
) -> None:
    @portal.sync
    async def inside(ctx: ExecutionContext) -> list[Any]:
        return who()

    for task in (
        app.task(who, shared=False, name="who"),
        app.task(inside, shared=False, name="inside"),
    ):
        with bind_tenant("left over"), bind_principal("by somebody"):
            assert received(task, **{HEADER: {"tenant": "acme"}}) == ["acme", None, False]
            assert received(task, **{HEADER: {}}) == NOBODY
            assert received(task) == NOBODY
            assert who()[0] == "left over"


@pytest.mark.parametrize(
    "header",
    ["acme", ["acme"], 1, {"tenant": 7}, {"tenant": ""}, {"principal": ["ann"]}],
)
def test_a_malformed_header_is_refused_before_anything_runs(
    app: Celery, portal: Portal, received: Received, header: Any
) -> None:
    ran: list[str] = []

    def run() -> None:
        ran.append("ran")

    task = app.task(run, shared=False, name="task")
    with (
        pytest.warns(RuntimeWarning, match="raised outside body"),
        pytest.raises(ValidationError, match="header 'forze' is malformed"),
    ):
        received(task, **{HEADER: header})
    assert ran == []
    assert received(app.task(who, shared=False, name="who")) == NOBODY


def test_a_copy_of_the_application_refuses_as_well(
    app: Celery, portal: Portal, received: Received
) -> None:
    copy = pickle.loads(pickle.dumps(app))  # as a pool that spawns its processes does
    copy.finalize()
    task = copy.task(who, shared=False, name="who")
    assert received(task, **{HEADER: {"tenant": "acme"}}) == ["acme", None, False]
    with (
        pytest.warns(RuntimeWarning, match="raised outside body"),
        pytest.raises(ValidationError, match="header 'forze' is malformed"),
    ):
        received(task, **{HEADER: "acme"})


def test_a_passport_comes_back_as_it_was_written() -> None:
    with bind_tenant("ünïcode 租户"):
        written = Passport.of_caller()
    assert Passport.read(written.header()) == written
    assert Passport.read({**written.header(), "from a later version": 1}) == written


def test_what_runs_on_the_spot_runs_for_whoever_calls(app: Celery, portal: Portal) -> None:
    def both() -> list[Any]:
        return [inner.apply().get(), who()]

    outer, inner = (
        app.task(both, shared=False, name="outer"),
        app.task(who, shared=False, name="inner"),
    )
    with bind_tenant("acme"):
        assert inner() == inner.apply().get() == ["acme", None, False]
        assert outer.apply(headers={HEADER: {"tenant": "other"}}).get() == [
            ["other", None, False], ["other", None, False]
        ]  # fmt: skip
        assert who() == ["acme", None, False]


def test_a_chain_goes_on_in_the_name_of_who_began_it(
    app: Celery, portal: Portal, received: Received
) -> None:
    task = app.task(who, shared=False, name="who")
    ann = {"tenant": "acme", "principal": "ann"}
    with published() as messages:
        received(task, chain=[dict(task.s())], **{HEADER: ann})
    assert [each[HEADER] for each in messages] == [ann]


@pytest.mark.parametrize("header", [{HEADER: {"tenant": "acme"}}, {}])
def test_a_retry_stays_what_it_was(
    app: Celery, portal: Portal, received: Received, header: dict[str, Any]
) -> None:
    @portal.sync
    async def again(ctx: ExecutionContext, self: Any) -> None:
        with bind_tenant("somebody else"):
            raise self.retry(countdown=0)

    task = app.task(again, shared=False, name="again", bind=True)
    with published() as messages, pytest.raises(Retry):
        received(task, **header)
    assert [(each["retries"], each[HEADER]) for each in messages] == [(1, header.get(HEADER, {}))]


# -- tasks ---------------------------------------------------------------------------


def test_celery_sees_a_task_as_it_is_called(app: Celery, portal: Portal) -> None:
    @app.task(shared=False)  # type: ignore[untyped-decorator]
    @portal.sync
    async def add(ctx: ExecutionContext, first: int, second: int = 1) -> int:
        """Adds."""
        return first + second

    assert add.name.endswith(".add")
    assert add.__doc__ == "Adds."
    assert list(inspect.signature(add.run).parameters) == ["first", "second"]
    assert add.apply((1,)).get() == add(1) == 2
    with pytest.raises(TypeError, match="argument"):
        add.delay(1, 2, 3)


def test_a_bound_task_knows_its_request_in_the_portal(
    app: Celery, portal: Portal, received: Received
) -> None:
    @portal.sync
    async def mine(ctx: ExecutionContext, self: Any, word: str) -> list[Any]:
        return [self.request.id, self.request.retries, self.name, word]

    task = app.task(mine, shared=False, name="mine", bind=True)
    assert received(task, "x", id="17", retries=2) == ["17", 2, "mine", "x"]
    assert task("y")[0] is None, "called as a function it has no request"


# -- failures ------------------------------------------------------------------------


def read_back(app: Celery, error: Exception) -> Any:
    """The error as whoever asks for the result gets it, by way of JSON."""
    backend = app.backend
    stored = backend.encode(backend.prepare_exception(error, "json"))
    return backend.exception_to_python(backend.decode(stored))


@pytest.mark.parametrize("error", EVERY, ids=lambda error: type(error).__name__)
def test_an_error_comes_back_whole_with_the_result(
    app: Celery, portal: Portal, error: ForzeError
) -> None:
    back = read_back(app, error)
    assert type(back) is type(error)
    assert str(back) == str(error) == back.args[0]
    assert vars(back) == vars(error)


def test_a_question_for_its_own_process_stays_there(app: Celery, portal: Portal) -> None:
    async def whether() -> bool:
        return True

    error = BackendUnavailable("lost", backend="postgres", outcome="unknown")
    error.still_running = whether
    assert read_back(app, error).still_running is None


def test_what_is_no_error_of_ours_comes_back_as_celery_has_it(app: Celery, portal: Portal) -> None:
    assert repr(read_back(app, KeyError("lamp"))) == "KeyError('lamp')"
    for module, name in (("os", "system"), ("absent", "NotFoundError"), ("builtins", "KeyError")):
        stored = {"exc_module": module, "exc_type": name, "exc_message": ["text"]}
        forged = {**stored, KEY: {"message": "text"}}
        try:
            read = app.backend.exception_to_python(forged)
        except SecurityError:
            continue
        assert not isinstance(read, ForzeError)
        assert read.args == ("text",)


# -- processes -----------------------------------------------------------------------


def test_a_pool_of_threads_binds_what_each_message_says(
    app: Celery, portal: Portal, received: Received
) -> None:
    task = app.task(who, shared=False, name="who")
    pool = TaskPool(1, app=app)
    pool.start()
    headers = [{HEADER: {"tenant": "acme"}}, {}, {HEADER: {"principal": "ann"}}, {}]
    try:
        runs = [pool.executor.submit(received, task, **each) for each in headers]
        bound = [each.result(WAIT) for each in runs]
    finally:
        pool.stop()
    assert bound == [["acme", None, False], NOBODY, [None, "ann", False], NOBODY]


class Ending:
    """The worker of an application, as its signal knows it."""

    def __init__(self, app: Celery) -> None:
        self.app = app


def test_it_is_closed_with_the_worker_of_its_application(app: Celery, portal: Portal) -> None:
    portal.open()
    signals.worker_shutdown.send(sender=Ending(Celery("another", set_as_current=False)))
    assert ended == []
    signals.worker_shutdown.send(sender=Ending(app))
    assert ended == ["portal"]
    with pytest.raises(ConfigurationError, match="is closed"):
        portal.open()


def test_it_is_closed_with_a_process_of_a_pool(app: Celery, portal: Portal) -> None:
    portal.open()
    signals.worker_process_shutdown.send(sender=None, pid=1, exitcode=0)
    assert ended == ["portal"]

"""No read is older than its bound: four processes among faults, and a judge that can say no.

The long run is ``python -m tests.judge.run``; what the judge finds is in ``tests/judge``.
"""

from __future__ import annotations

from pathlib import Path

from tests.judge.checker import judge
from tests.judge.record import Read, read_logs
from tests.judge.run import Plan, checked, run

from forze.testing.servers import ValkeyServer

OPERATIONS = 12_000
BOUND_SECONDS = 0.8
"""With room for a machine that is busy with other things."""


def usual(*, push: bool = True) -> Plan:
    """A run of some ten seconds: short of documents, so that it is warm again soon."""
    return Plan(seed=3, operations=OPERATIONS, documents=300, bound=BOUND_SECONDS, push=push)


async def test_nothing_is_read_that_is_older_than_its_bound(
    own_valkey: ValkeyServer, postgres_dsn: str, tmp_path: Path
) -> None:
    """P11: with pushes, an L1 is behind for as long as it takes to notice that they stopped."""
    plan = usual()
    faults = await run(plan, own_valkey, postgres_dsn, tmp_path)
    code, verdict = checked(tmp_path, plan)
    assert code == 0, f"{faults.done}\n{verdict}"
    assert faults.counts().keys() >= {"crash", "restart"}


async def test_without_pushes_the_same_run_does_not_pass(
    own_valkey: ValkeyServer, postgres_dsn: str, tmp_path: Path
) -> None:
    """The bound is the pushes' doing; and all that is too old came from an L1."""
    plan = usual(push=False)
    await run(plan, own_valkey, postgres_dsn, tmp_path)
    code, verdict = checked(tmp_path, plan)
    assert code == 1, verdict
    found = judge(read_logs(tmp_path), bound=plan.bound).violations
    served = {each.record.served for each in found if isinstance(each.record, Read)}
    assert len(found) > OPERATIONS / 100
    assert served <= {"l1", "mixed"}, verdict

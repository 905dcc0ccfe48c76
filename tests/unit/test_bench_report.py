"""What a run says of its figures."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from bench import plots
from bench.peers import WorkerFailed
from bench.report import Figure, Report
from bench.run import Run

STEADY = Figure.of([10, 11, 12, 13])


def test_a_figure_is_its_median_and_quartiles() -> None:
    assert (STEADY.median, STEADY.low, STEADY.high) == (11.5, 10.75, 12.25)
    alone = Figure.of([7])
    assert (alone.median, alone.low, alone.high) == (7, 7, 7)
    with pytest.raises(ValueError, match="at least one"):
        Figure.of([])


def test_a_ratio_is_taken_round_by_round() -> None:
    """A round in which everything was slow leaves it as it is."""
    ours, theirs = Figure.of([1, 1, 50]), Figure.of([4, 4, 200])
    assert theirs.over(ours).values == (4, 4, 4)
    with pytest.raises(ValueError, match="argument 2"):
        ours.over(STEADY)


def test_how_many_times_better_has_one_direction(capsys: pytest.CaptureFixture[str]) -> None:
    report = Report({})
    report.begin("part", "text")
    slow, fast = Figure.of([30, 30]), Figure.of([10, 10])
    report.compare("time", "us", {"forze": fast, "peer": slow})
    report.compare("rate", "per second", {"forze": slow, "peer": fast}, more_is_better=True)
    report.compare("beaten", "us", {"forze": slow, "peer": fast})
    peers = [line for line in capsys.readouterr().out.splitlines() if line.startswith("   peer")]
    assert [line.split()[5] for line in peers] == ["3.00x", "3.00x", "0.33x"]


@pytest.mark.parametrize(
    ("found", "bound", "verdict"),
    [
        (2.0, {"least": 2.0}, "met"),
        (1.5, {"least": 2.0}, "missed by 0.5"),
        (2.0, {"most": 2.0}, "met"),
        (2.5, {"most": 2.0}, "missed by 0.5"),
    ],
    ids=["enough", "too little", "in bounds", "too much"],
)
def test_a_target_is_met_or_the_run_says_by_how_much_not(
    found: float, bound: dict[str, float], verdict: str, capsys: pytest.CaptureFixture[str]
) -> None:
    report = Report({})
    report.target("what", found, **bound)
    assert report.verdicts() is (verdict == "met")
    assert capsys.readouterr().out.rstrip().endswith(verdict)


def test_a_target_without_a_figure_is_not_met(capsys: pytest.CaptureFixture[str]) -> None:
    report = Report({})
    assert not report.verdicts()
    report.target("known", 1, most=2)
    report.target("unknown", None, most=2)
    assert not report.verdicts()
    assert capsys.readouterr().out.rstrip().endswith("not measured")
    assert report.summary() == "2 targets: 1 met, 0 missed, 1 not measured"


def test_a_round_without_a_ratio_costs_the_ratio_and_not_the_figures(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Such as a round in which nobody waited."""
    report = Report({})
    report.begin("part", "text")
    ours, theirs = Figure.of([0, 1, 2]), Figure.of([3, 3, 3])
    report.compare("waiting", "callers", {"forze": ours, "peer": theirs})
    report.pairs("waiting", "callers", {"row": (ours, "peer", theirs)})
    report.growth("waiting", "callers", {"forze": [(1, ours), (2, theirs)]})
    assert "x  (" not in capsys.readouterr().out


def test_nobody_measured_is_nothing_to_compare_or_draw(tmp_path: Path) -> None:
    report = Report({})
    report.begin("part", "text")
    report.compare("time", "us", {})
    report.plot("bars", plots.Bars("title", "us", {"1": {}}))
    report.plot("lines", plots.Lines("title", "callers", "us", {"forze": []}))
    report.write(tmp_path, "latest")
    assert [each.name for each in tmp_path.iterdir()] == ["latest.json"]


def test_who_fails_is_reported_and_the_others_go_on(tmp_path: Path) -> None:
    def failing() -> float:
        raise WorkerFailed("no answer")

    report = Report({})
    nothing: Any = None
    run = Run(nothing, [], nothing, report, rounds=2, seconds=0.1, full=False, traces=None)
    assert run.turns("reads", {"peer": failing, "forze": lambda: 1.0}) == {"forze": [1.0, 1.0]}
    assert run.turns("reads", {}) == {}
    report.write(tmp_path, "latest")
    written = json.loads((tmp_path / "latest.json").read_text())
    assert written["not measured"] == {"peer, reads": "no answer"}


def test_what_could_not_be_measured_is_said_and_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    report = Report({"cores": "2"})
    report.begin("part", "text")
    report.missing("peer", "no such version")
    report.fact("commands", 2)
    report.compare("time", "us", {"forze": STEADY})
    report.target("time", 11.5, most=12)
    report.verdicts()
    report.write(tmp_path / "new", "latest")
    assert capsys.readouterr().out.count("peer: no such version") == 2
    written = json.loads((tmp_path / "new" / "latest.json").read_text())
    assert written["machine"] == {"cores": "2"}
    assert written["not measured"] == {"peer": "no such version"}
    assert written["targets"] == [{"what": "time", "found": 11.5, "at most": 12, "met": True}]
    figures = written["parts"]["part"]["time"]["figures"]
    assert figures["forze"]["readings"] == [10, 11, 12, 13]
    assert written["parts"]["part"]["commands"]["value"] == 2


@pytest.mark.parametrize(
    "plot",
    [
        plots.Bars("title", "us", {"1": {"forze": STEADY, "peer": STEADY}, "32": {"peer": STEADY}}),
        plots.Lines("title", "callers", "us", {"forze": [(1, STEADY), (32, STEADY)]}, log_y=True),
    ],
    ids=["bars", "lines"],
)
def test_a_plot_is_drawn_and_the_same_figures_give_the_same_file(
    plot: plots.Plot, tmp_path: Path
) -> None:
    report = Report({})
    report.plot("one", plot)
    report.plot("two", plot)
    report.write(tmp_path, "latest")
    one = (tmp_path / "one.svg").read_bytes()
    assert one == (tmp_path / "two.svg").read_bytes()
    texts = [each.text for each in ElementTree.fromstring(one).iter() if each.text]
    assert {"title", "us", "forze"} <= {text.strip() for text in texts}

"""The document of the figures is complete and names what is pinned; what it computes from a run is right."""

import re
import tomllib
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import pytest

from benchmarks import __main__ as benchmarks
from benchmarks import report
from benchmarks.peers import PEERS, Peer
from campaign_jobs.settings import BY_FUNCTION

EFFECT = re.compile(
    r"INSERT INTO effects \(event_id, campaign_id\) VALUES \(\S+, \S+\) ON CONFLICT DO NOTHING"
)


@pytest.fixture
def written(repository: Path) -> str:
    """What `make bench` has written into the document."""
    text = (repository / "docs" / report.NAME).read_text(encoding="utf-8")
    assert text.count(report.BEGIN) == text.count(report.END) == 1
    return text.partition(report.BEGIN)[2].partition(report.END)[0]


def test_the_document_names_every_peer_as_it_is_pinned(written: str) -> None:
    for peer in PEERS:
        assert f"| {peer.name} {peer.version} | {peer.setup} |" in written
        assert f"| {peer.durability} | {peer.better} |" in written
    assert f"| {report.OURS} | " in written


def test_the_document_has_every_job_and_handler(written: str) -> None:
    for job_type in ("position", "analytics", "fraud"):
        assert f"| {job_type} | the bare SQL | " in written
    assert set(re.findall(r"^\| (\w+) \| [\d,]+ \| [\d.]+ \| \d+ \|$", written, re.MULTILINE)) == set(
        BY_FUNCTION
    )
    for batch in report.BARE_BATCHES:
        assert f"\n| {batch:,} | " in written
    assert "| the layer of dependencies | " in written


def test_the_document_says_of_each_aim_whether_it_was_reached(written: str) -> None:
    rows = re.findall(r"^\| (.*) \| ([\d.]+) \| (yes|\*\*no\*\*) \|$", written, re.MULTILINE)
    # The fastest peer, the bare libraries by batch size, three jobs of SQL.
    assert len(rows) == 1 + len(report.BARE_BATCHES) + 3
    for aim, measured, reached in rows:
        kind, bound = re.findall(r"at (least|most) ([\d.]+)", aim)[0]
        # What is shown is rounded.
        if float(measured) != float(bound):
            assert (reached == "yes") == (
                float(measured) > float(bound) if kind == "least" else float(measured) < float(bound)
            )


def test_the_chart_shows_every_side(repository: Path, written: str) -> None:
    assert f"]({report.CHART})" in written
    chart = ET.parse(repository / "docs" / report.CHART)
    texts = {"".join(element.itertext()).strip() for element in chart.iter() if element.tag.endswith("}text")}
    assert texts >= {report.OURS, *(peer.name for peer in PEERS)}


@pytest.mark.parametrize("peer", PEERS, ids=lambda peer: peer.package)
def test_every_peer_is_pinned_and_has_the_same_effect(repository: Path, peer: Peer) -> None:
    groups = tomllib.loads((repository / "pyproject.toml").read_text(encoding="utf-8"))["dependency-groups"]
    wanted = {re.split(r"[\[><=]", entry)[0] for entry in groups[f"bench-{peer.package}"]}
    lines = (peer.directory / "requirements.txt").read_text(encoding="utf-8").splitlines()
    pinned = {line.split("==")[0].split("[")[0] for line in lines if not line.startswith(" ")}
    assert all("==" in line for line in lines if not line.startswith(" "))
    assert pinned >= wanted
    assert EFFECT.search((peer.directory / "tasks.py").read_text(encoding="utf-8"))
    assert f"{peer.package} " in (repository / "Makefile").read_text(encoding="utf-8").replace("\n", " ")


RESULTS: dict[str, Any] = {
    "backlog": {
        "campaign-jobs": {"rates": [90.0, 100.0, 200.0]},
        "Dramatiq": {"rates": [20.0, 10.0, 30.0]},
        "Huey": {"rates": [9.0, 9.0, 9.0]},
    },
    "single": {"100": {"bare": [10.0, 20.0, 30.0], "pipeline": [9.0, 9.0, 9.0]}},
    "scheduled": {
        "fraud": {"bare": [2.0], "everything, looked at again": [2.0], "1,000 users changed": [9.0]},
        "analytics": {"bare": [2.0], "every hour, counted again": [2.5], "the last day's hours": [0.1]},
    },
}


def test_aims_go_by_medians_and_by_the_run_that_does_everything() -> None:
    assert report.aims(RESULTS).splitlines()[2:] == [
        "| at least 5 times the fastest peer, Dramatiq | 5.00 | yes |",
        "| at least 0.5 of the bare libraries, batches of 100 | 0.45 | **no** |",
        "| fraud: at most 1.2 times the bare SQL (everything, looked at again) | 1.00 | yes |",
        "| analytics: at most 1.2 times the bare SQL (every hour, counted again) | 1.25 | **no** |",
    ]


def test_a_median_shows_its_range() -> None:
    assert report.spread([3_000.0, 1_000.0, 2_000.0], "{:,.0f}") == "2,000 (1,000 – 3,000)"
    assert report.spread([3.0], "{:.1f}") == "3.0"


def test_figures_that_were_never_measured_cannot_be_written_again(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setattr(benchmarks, "RESULTS", tmp_path / "results.json")
    monkeypatch.setattr("sys.argv", ["benchmarks", "--again"])
    assert benchmarks.main() == 1
    assert capsys.readouterr().err.startswith("there are no figures to write again: run `make bench`")


@pytest.mark.parametrize("option", ["--rounds", "--users"])
def test_nothing_can_be_measured_less_than_once(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], option: str
) -> None:
    monkeypatch.setattr("sys.argv", ["benchmarks", "--quick", option, "0"])
    # So that a run that should not begin ends at once.
    monkeypatch.setattr(benchmarks, "measure", lambda **_: pytest.fail("it was measured"))
    with pytest.raises(SystemExit):
        benchmarks.main()
    assert f"{option}: 0: allowed is 1 or more" in capsys.readouterr().err

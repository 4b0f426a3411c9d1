"""The short run of what `make chaos` runs whole: one fault of each kind at least, and nothing lost or doubled."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.timeout(900)
def test_nothing_is_lost_or_doubled_while_everything_is_killed(repository: Path, tmp_path: Path) -> None:
    path = os.pathsep.join([str(repository / "layers/campaign_jobs/python"), str(repository)])
    done = subprocess.run(
        [
            sys.executable, "-m", "local", "chaos",
            "--events", "600", "--seed", "7", "--keep", str(tmp_path / "chaos"),
        ],
        cwd=repository,
        env=os.environ | {"PYTHONPATH": path},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
        timeout=880,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout
    figures = dict(re.findall(r"^ +([a-zA-Z][a-zA-Z' ]*?) {2,}(\d+) ", done.stdout, re.MULTILINE))
    assert figures["events"] == "606"
    assert figures["lost"] == figures["doubled"] == figures["wrong"] == "0"
    assert int(figures["dead letters"]) > int(figures["killers"]) > 0
    for fault in (
        "PostgreSQL is killed",
        "Apache Kafka is killed",
        "SES pauses the account",
        "processes killed",
    ):
        assert int(figures[fault]) > 0, fault

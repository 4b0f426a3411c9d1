"""The command line over a test's own database, and over the stand-in for SES where one is asked for."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from campaign_jobs_cli.app import run


@dataclass(frozen=True)
class Printed:
    """What a command left behind."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


Command = Callable[..., Printed]


@dataclass
class Endpoints:
    """The endpoints.json of a local system whose parts a test has started itself."""

    directory: Path
    values: dict[str, Any]

    def set(self, **values: Any) -> None:
        self.values |= values
        (self.directory / "endpoints.json").write_text(json.dumps(self.values))


@pytest.fixture
def endpoints(database_url: str, tmp_path: Path) -> Endpoints:
    directory = tmp_path / "local"
    directory.mkdir()
    found = Endpoints(directory, {})
    found.set(
        region="eu-central-1",
        kafka="127.0.0.1:1",
        topic="job-events",
        consumer_group="job-workers",
        default_sender="hello@mail.example.com",
        database_url=database_url,
        control_url="http://127.0.0.1:1",
        aws_endpoint_url="http://127.0.0.1:1",
        is_stand_in=True,
    )
    return found


@pytest.fixture
def command(
    endpoints: Endpoints, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> Command:
    """Runs one command as a shell would, without a terminal."""
    # Wide enough for a table not to fold its cells.
    monkeypatch.setenv("COLUMNS", "400")

    def running(*arguments: object) -> Printed:
        capsys.readouterr()
        code = run([*map(str, arguments), "--directory", str(endpoints.directory)])
        captured = capsys.readouterr()
        return Printed(code, captured.out, captured.err)

    return running

"""A CDK command line that cannot read what the app writes hears one line that says which can."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from aws_cdk.cloud_assembly_schema import Manifest

from campaign_jobs.errors import SettingsError
from infra import command_line


def run_app(
    repository: Path, directory: Path, **environ: str
) -> tuple[subprocess.CompletedProcess[str], list[str]]:
    """Run app.py as a command line would, and list what it wrote."""
    finished = subprocess.run(
        [sys.executable, "app.py"],
        cwd=repository,
        env={
            **os.environ,
            "PYTHONPATH": "layers/campaign_jobs/python",
            "CDK_OUTDIR": str(directory),
            "CDK_CONTEXT_JSON": json.dumps(
                {**json.loads((repository / "cdk.json").read_text())["context"], "env": "dev"}
            ),
            **environ,
        },
        capture_output=True,
        text=True,
        check=False,
    )
    return finished, [file.name for file in directory.iterdir()]


# What these say of themselves; 3.0.0 carries npm's tag `latest` by mistake.
@pytest.mark.parametrize(("version", "reads"), [("3.0.0", "43.0.0"), ("2.1000.0", "40.0.0")])
def test_one_that_is_too_old_ends_with_the_line_and_no_traceback(
    repository: Path, tmp_path: Path, version: str, reads: str
) -> None:
    finished, written = run_app(repository, tmp_path, CDK_CLI_VERSION=version, CDK_CLI_ASM_VERSION=reads)
    pinned = json.loads((repository / "package.json").read_text())["devDependencies"]["aws-cdk"]
    assert finished.returncode == 1
    assert finished.stderr.splitlines()[-1] == (
        f"the CDK command line {version} reads cloud assemblies up to {reads}, and aws-cdk-lib writes "
        f"{Manifest.version()}: allowed is {pinned}, as package.json has it (npm ci, then npx cdk)"
    )
    assert "Traceback" not in finished.stderr
    assert written == []


def test_the_one_that_package_json_pins_is_taken(repository: Path, tmp_path: Path) -> None:
    pinned = json.loads((repository / "package.json").read_text())["devDependencies"]["aws-cdk"]
    finished, written = run_app(
        repository, tmp_path, CDK_CLI_VERSION=pinned, CDK_CLI_ASM_VERSION=Manifest.version()
    )
    assert finished.returncode == 0, finished.stderr
    assert "campaign-jobs-dev.template.json" in written


def test_a_newer_one_is_taken_and_so_is_none_at_all() -> None:
    command_line.check({"CDK_CLI_VERSION": "2.2000.0", "CDK_CLI_ASM_VERSION": "101.2.0"})
    command_line.check({})


def test_versions_are_compared_by_their_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    """As texts, 9.0.0 would be newer than 55.0.0."""
    with pytest.raises(SettingsError, match=r"reads cloud assemblies up to 9\.0\.0"):
        command_line.check({"CDK_CLI_VERSION": "2.1.0", "CDK_CLI_ASM_VERSION": "9.0.0"})
    monkeypatch.setattr(command_line.Manifest, "version", lambda: "55.1.0")
    with pytest.raises(SettingsError, match=r"aws-cdk-lib writes 55\.1\.0"):
        command_line.check({"CDK_CLI_VERSION": "2.1148.1", "CDK_CLI_ASM_VERSION": "55.0.0"})

"""Whether the CDK command line that runs the app can read what the app writes."""

import json
from collections.abc import Mapping
from dataclasses import dataclass

from aws_cdk.cloud_assembly_schema import Manifest

from campaign_jobs.errors import SettingsError
from campaign_jobs.settings import Settings, setting, text
from infra.layers import REPOSITORY


@dataclass(frozen=True, kw_only=True)
class CommandLine(Settings):
    """What it says of itself; an app that is run without one hears nothing."""

    cdk_cli_version: str = setting(text, "")
    # The newest cloud assembly that it reads.
    cdk_cli_asm_version: str = setting(text, "")


def check(environ: Mapping[str, str] | None = None) -> None:
    """Raise SettingsError where what aws-cdk-lib writes is too new for the command line, before it is written."""
    command_line = CommandLine.load(environ)
    written, reads = Manifest.version(), command_line.cdk_cli_asm_version
    if not reads or _numbers(reads) >= _numbers(written):
        return
    pinned = json.loads((REPOSITORY / "package.json").read_text())["devDependencies"]["aws-cdk"]
    problem = (
        f"the CDK command line {command_line.cdk_cli_version} reads cloud assemblies up to {reads}, and "
        f"aws-cdk-lib writes {written}: allowed is {pinned}, as package.json has it (npm ci, then npx cdk)"
    )
    raise SettingsError([problem])


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(number) for number in version.split("."))

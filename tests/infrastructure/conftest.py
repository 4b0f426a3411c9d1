"""Each environment's stack is synthesised once for the whole run, with the context that `cdk synth` takes."""

import os
import sys
from functools import cache
from pathlib import Path
from typing import Any

import pytest

# jsii starts `node` as soon as aws_cdk is imported; ours is beside the interpreter, activated or not.
os.environ["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])

from infra import environments
from tests.infrastructure.synthesis import Synthesis, synthesise
from tests.infrastructure.watching import Alarm, alarms_of, synthesise_watching

_synthesise_once = cache(synthesise)


@pytest.fixture(scope="session", params=[environment.name for environment in environments.ENVIRONMENTS])
def synthesis(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Synthesis:
    """One environment's template; a test that asks for it runs for each environment."""
    return _synthesise_once(environments.load(request.param), tmp_path_factory.getbasetemp() / "cdk.out")


@pytest.fixture(scope="session")
def dev(tmp_path_factory: pytest.TempPathFactory) -> Synthesis:
    return _synthesise_once(environments.DEV, tmp_path_factory.getbasetemp() / "cdk.out")


@pytest.fixture(scope="session")
def watching() -> dict[str, Any]:
    """The template of dev's alarms and dashboard alone."""
    return synthesise_watching(environments.DEV)


@pytest.fixture(scope="session")
def alarms(watching: dict[str, Any]) -> dict[str, Alarm]:
    """Dev's alarms by name, without the environment's part of it."""
    return alarms_of(watching, environments.DEV)

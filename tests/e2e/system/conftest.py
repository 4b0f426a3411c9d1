"""One local system for the tests that only use it."""

import tempfile
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest

from local.settings import LocalSettings
from local.system import LocalSystem, Tuning

# Its minute would be most of each test's time.
RELAY_OFTEN = Tuning(relay_interval=timedelta(seconds=3))


@pytest.fixture(scope="session")
def system() -> Iterator[LocalSystem]:
    with tempfile.TemporaryDirectory(prefix="campaign-jobs-system-") as name:
        # As root, PostgreSQL runs as another user.
        Path(name).chmod(0o755)
        with LocalSystem(
            Path(name), LocalSettings.load({}), durable=False, customary_ports=False, tuning=RELAY_OFTEN
        ) as system:
            yield system

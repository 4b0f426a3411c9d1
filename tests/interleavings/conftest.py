"""The race of a test. A failure shows how its last schedule went."""

from collections.abc import Iterator

import pytest

from tests.interleavings.stepping import Race


@pytest.fixture
def race(database_url: str, request: pytest.FixtureRequest) -> Iterator[Race]:
    race = Race(database_url)
    yield race
    race.close()
    request.node.add_report_section("teardown", "schedule", str(race.last))

"""Stopped at any moment at which a job touches the world, nothing is lost and nothing is done twice.

Each scenario is one invocation. It is run undisturbed first, which numbers its boundaries; then once for each of them,
with the process ended there, the event delivered again as Lambda would, and what is left compared.
"""

import pytest

from tests.crash.conftest import Stage, Stop
from tests.crash.scenario import Scenario, check_sends
from tests.crash.scenarios import SCENARIOS
from tests.crash.state import difference


# Some scenarios have more than fifty boundaries, each with a process or five of its own.
@pytest.mark.timeout(600)
@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda scenario: scenario.name)
def test_every_boundary(scenario: Scenario, stage: Stage, request: pytest.FixtureRequest) -> None:
    undisturbed = stage.undisturbed(scenario)

    def stop(numbered: tuple[int, Stop]) -> str | None:
        number, (label, times) = numbered
        try:
            rest = stage.run(scenario, undisturbed.seeded, (label, times))
            check_sends(rest)
            problem = difference(undisturbed.end, rest.ends_alike(undisturbed.known, scenario.ignored))
        except AssertionError as error:
            problem = f"    {error}"
        return f"{number}. stopped {label} ({times}):\n{problem}" if problem else None

    stops = undisturbed.stops(every=request.config.getoption("--every-boundary"))
    numbered = list(enumerate(stops, start=1))
    wrong = [problem for problem in stage.pool.map(stop, numbered) if problem]
    print(f"{scenario.name}: {len(undisturbed.boundaries)} boundaries, a process stopped at {len(stops)}")
    if wrong:
        pytest.fail("\n".join([f"{len(wrong)} of {len(numbered)} stops went wrong:", *wrong]), pytrace=False)
    stage.check_databases(undisturbed.seeded)

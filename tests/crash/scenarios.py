"""All scenarios. One is added for whatever no scenario reaches: test_completeness names it."""

from typing import Final

from tests.crash import (
    email_scenarios,
    feedback_scenarios,
    heartbeat_scenarios,
    isolation_scenarios,
    position_scenarios,
    relay_scenarios,
    reward_scenarios,
    schedule_scenarios,
    unroutable_scenarios,
    unsubscribe_scenarios,
)
from tests.crash.scenario import Scenario

SCENARIOS: Final[tuple[Scenario, ...]] = (
    *email_scenarios.SCENARIOS,
    *feedback_scenarios.SCENARIOS,
    *heartbeat_scenarios.SCENARIOS,
    *isolation_scenarios.SCENARIOS,
    *position_scenarios.SCENARIOS,
    *reward_scenarios.SCENARIOS,
    *unroutable_scenarios.SCENARIOS,
    *schedule_scenarios.SCENARIOS,
    *relay_scenarios.SCENARIOS,
    *unsubscribe_scenarios.SCENARIOS,
)

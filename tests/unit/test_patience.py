"""How long a row that is not there yet is waited for."""

import uuid
from datetime import UTC, datetime, timedelta

import time_machine

from campaign_jobs.events import RewardDeliveryJobPayload, RewardEvent
from campaign_jobs.worker.delivery import Coordinates, Delivery
from campaign_jobs.worker.outcomes import Later, Rejected
from campaign_jobs.worker.patience import wait_for_missing

RECEIVED = datetime(2025, 1, 1, 12, tzinfo=UTC)
PATIENCE = timedelta(minutes=10)


def test_it_is_looked_for_ever_more_rarely_until_patience_ends() -> None:
    payload = RewardDeliveryJobPayload(user_reward_id=uuid.uuid4())
    event = RewardEvent(id="e", type="job.reward.deliver", data=payload, timestamp=RECEIVED)
    delivery = Delivery(event, Coordinates("t", 0, 0), 0, RECEIVED)
    age, waits = timedelta(milliseconds=200), []
    while True:
        with time_machine.travel(RECEIVED + age, tick=False):
            outcome = wait_for_missing(delivery, "user reward", PATIENCE)
        if not isinstance(outcome, Later):
            break
        waits.append(outcome.after)
        age += outcome.after
    assert outcome == Rejected("the user reward is not there, after waiting 10 min")
    assert age == PATIENCE
    assert waits[:-1] == sorted(waits[:-1])
    assert waits[0] == timedelta(seconds=1) and max(waits) == timedelta(minutes=1) and len(waits) < 25

"""The position job at its boundaries."""

from typing import Any
from uuid import UUID

from campaign_jobs.database.connection import Connection
from tests.crash.scenario import Rest, Scenario, retried
from tests.integration.position_campaign import Campaign


def _event(number: int, campaign_id: UUID, points: int = 0) -> dict[str, Any]:
    return {
        "id": f"recalculate-{number}",
        "type": "job.position.recalculate",
        "data": {"campaign_id": str(campaign_id), "points_per_referral": points},
        "timestamp": f"2026-03-01T12:00:0{number}Z",
    }


def _campaign(connection: Connection) -> Campaign:
    """The fourth has referred the fifth; the third has left the ranking since the last run."""
    campaign = Campaign(connection)
    users = campaign.add_users(5)
    connection.execute(
        "INSERT INTO campaign_jobs.user_positions (user_id, campaign_id, score, verified_referrals, position,"
        " last_enqueued_position) VALUES (%s, %s, 3, 0, 3, 3)",
        (users[2], campaign.id),
    )
    campaign.set_status(users[2], "removed")
    campaign.refer(users[3], users[4])
    return campaign


def _requests(connection: Connection) -> list[Any]:
    """They ask for the same points: after a stop each comes alone, and what is told along the way is told."""
    campaign = _campaign(connection)
    return [_event(1, campaign.id, points=3), _event(2, campaign.id, points=3), _event(3, UUID(int=1))]


def _ranked(rest: Rest) -> None:
    assert rest.rows(
        "SELECT original_position, position FROM campaign_jobs.user_positions"
        " JOIN campaign_jobs.waitlist_users ON id = user_id ORDER BY position"
    ) == [(4, 1), (1, 2), (2, 3), (5, 4)]
    assert rest.rows("SELECT count(*) FROM campaign_jobs.position_requests") == [(0,)]
    assert (
        rest.rows("SELECT event->>'type' FROM campaign_jobs.outbox") == [("job.email.position_update",)] * 2
    )
    assert rest.rows("SELECT points_per_referral FROM campaign_jobs.campaigns") == [(3,)]
    # The campaign that never came.
    assert len(rest.outside.dead_letters) == 1


def _retry(connection: Connection) -> list[Any]:
    return [retried(_event(2, _campaign(connection).id, points=3), attempts=1)]


def _ranked_alone(rest: Rest) -> None:
    assert rest.rows("SELECT count(*) FROM campaign_jobs.user_positions") == [(4,)]
    assert not rest.outside.dead_letters


SCENARIOS = [
    Scenario(
        name="position: a run for two requests",
        function="position",
        source="kafka",
        seed=_requests,
        expect=_ranked,
    ),
    Scenario(
        name="position: a retry",
        function="position",
        source="retry queue",
        seed=_retry,
        expect=_ranked_alone,
    ),
]

"""Races of position runs with requests, with each other and with what they count."""

from collections.abc import Callable
from datetime import timedelta
from typing import Any
from uuid import UUID

import pytest

from campaign_jobs.database.connection import Connection, Database
from campaign_jobs.position.decisions import Standing, rank
from campaign_jobs.position.job import PositionJob
from campaign_jobs.position.run import recalculate
from campaign_jobs.position.waiting import request_waiting
from campaign_jobs.worker.outcomes import Done
from tests.integration.position_campaign import LAUNCH, Campaign, delivery, far_deadline, refer
from tests.interleavings.services import in_transaction
from tests.interleavings.stepping import Race

TAKES_ITS_SNAPSHOT = "SELECT ranked_at IS NOT NULL"


def right_positions(campaign: Campaign) -> dict[UUID, int]:
    """What the stored state says that positions are."""
    rows = campaign.connection.execute(
        "SELECT id, original_position, (SELECT count(*) FROM campaign_jobs.referrals"
        "  WHERE referrer_id = users.id AND referrals.status IN ('verified', 'converted')"
        "    AND NOT EXISTS (SELECT FROM campaign_jobs.held_users WHERE user_id IN (referrer_id, referred_id)))"
        " FROM campaign_jobs.waitlist_users AS users"
        " WHERE campaign_id = %s AND status NOT IN ('removed', 'blocked')",
        (campaign.id,),
    ).fetchall()
    standings = [Standing(id_, original, LAUNCH, referrals) for id_, original, referrals in rows]
    return rank(standings, campaign.points_now())


def a_campaign(connection: Connection) -> tuple[Campaign, list[UUID]]:
    """Five users, and the request that their sign-up left."""
    campaign = Campaign(connection)
    return campaign, campaign.add_users(5)


def test_two_requests_at_the_same_time_are_both_counted_in(race: Race, connection: Connection) -> None:
    jobs = [PositionJob(side.database) for side in (race.first, race.second)]
    for schedule in race.schedules():
        campaign, _ = a_campaign(connection)
        asks = [delivery(campaign.id, points=points) for points in (2, 3)]

        def publish(number: int) -> Callable[[], Any]:
            return lambda: jobs[number].process([asks[number]], far_deadline())

        assert schedule.run(publish(0), publish(1)) == ([Done()], [Done()])
        assert campaign.waiting() == 0
        assert campaign.points_now() == (3 if asks[1].event.id > asks[0].event.id else 2)
        assert campaign.positions() == right_positions(campaign)
        assert 1 <= campaign.runs() <= 2


def test_what_commits_during_a_run_causes_exactly_one_more(race: Race, connection: Connection) -> None:
    """A service changes what positions depend on, in three transactions; only the last one is stepped."""
    job = PositionJob(race.first.database)
    for schedule in race.schedules():
        campaign, users = a_campaign(connection)

        def verifies(stepped: Connection) -> None:
            refer(stepped, campaign.id, users[4], users[0])
            refer(stepped, campaign.id, users[4], users[1])
            stepped.execute(
                "UPDATE campaign_jobs.waitlist_users SET status = 'removed' WHERE id = %s", (users[2],)
            )

        ran, _ = schedule.run(
            lambda: job.process([delivery(campaign.id)], far_deadline()),
            in_transaction(race.second, verifies),
        )
        assert ran == [Done()]
        runs = campaign.runs()
        came_first = schedule.is_before(race.second, "COMMIT", race.first, TAKES_ITS_SNAPSHOT)
        if came_first:
            # The first run's snapshot saw it all.
            assert (runs, campaign.waiting()) == (1, 0)
        if campaign.waiting():
            # Nobody is running: relay asks for a run, and one is enough.
            assert campaign.waiting() == 3
            assert runs == 1
            with connection.transaction():
                assert request_waiting(connection, older_than=timedelta(seconds=-1)) == 1
            assert job.process([delivery(campaign.id)], far_deadline()) == [Done()]
            assert campaign.runs() == runs + 1
        else:
            assert runs == (1 if came_first else 2)
        assert campaign.waiting() == 0
        assert campaign.positions() == right_positions(campaign)


@pytest.mark.parametrize("change", ["hold", "points"])
def test_two_runs_of_one_campaign_leave_what_the_later_snapshot_says(
    race: Race, connection: Connection, change: str
) -> None:
    for schedule in race.schedules(all_pairs=False):
        campaign, users = a_campaign(connection)
        for referred in (users[0], users[2], users[3]):
            campaign.refer(users[4], referred)

        def changes_and_runs() -> None:
            with race.second.database.transaction() as stepped:
                if change == "hold":
                    stepped.execute(
                        "INSERT INTO campaign_jobs.fraud_cases"
                        " (campaign_id, user_id, status, holding, risk_score, evidence, rules_version)"
                        " VALUES (%s, %s, 'open', true, 90, '[]', '1')",
                        (campaign.id, users[4]),
                    )
                else:
                    stepped.execute(
                        "UPDATE campaign_jobs.campaigns SET points_per_referral = 3 WHERE id = %s",
                        (campaign.id,),
                    )
            recalculate(race.second.database, campaign.id)

        schedule.run(lambda: recalculate(race.first.database, campaign.id), changes_and_runs)
        if campaign.waiting():
            recalculate(race.first.database, campaign.id)
        assert campaign.positions() == right_positions(campaign)


def test_each_improvement_is_told_once(race: Race, connection: Connection) -> None:
    jobs = [PositionJob(side.database) for side in (race.first, race.second)]
    for schedule in race.schedules(all_pairs=False):
        campaign, users = a_campaign(connection)
        for referred in users[:3]:
            campaign.refer(users[4], referred)

        def publish(number: int) -> Callable[[], Any]:
            return lambda: jobs[number].process([delivery(campaign.id)], far_deadline())

        schedule.run(publish(0), publish(1))
        told = connection.execute(
            "SELECT event->'data'->>'user_id', event->'data'->'template_data'->>'position'"
            " FROM campaign_jobs.outbox WHERE event->>'campaign_id' = %s",
            (str(campaign.id),),
        ).fetchall()
        assert told == [(str(users[4]), "2")]
        assert campaign.positions() == right_positions(campaign)


def test_who_held_the_lock_for_nothing_looks_again(
    race: Race, database: Database, connection: Connection
) -> None:
    """A third one takes the requests between a runner's look and its lock, and a fourth comes while it holds that."""
    campaign, _ = a_campaign(connection)
    slow, others = race.first, PositionJob(database)
    slow.start(lambda: PositionJob(slow.database).process([delivery(campaign.id)], far_deadline()), stop_at=0)
    slow.advance(to=TAKES_ITS_SNAPSHOT)
    assert others.process([delivery(campaign.id)], far_deadline()) == [Done()]
    assert (campaign.waiting(), campaign.runs()) == (0, 1)
    slow.advance(to="COMMIT")
    assert others.process([delivery(campaign.id, points=7)], far_deadline()) == [Done()]
    assert campaign.waiting() == 1
    slow.join()
    assert slow.result == [Done()]
    assert (campaign.waiting(), campaign.points_now()) == (0, 7)

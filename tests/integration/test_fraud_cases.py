"""Decisions on cases: what was held is delivered or revoked, and dismissed evidence stays dismissed."""

import threading
from datetime import timedelta
from uuid import UUID, uuid4

import psycopg
import pytest

from campaign_jobs.database.connection import Connection, Database
from campaign_jobs.fraud.cases import CaseNotOpen, ReasonMissing, confirm, dismiss, release_unheld
from campaign_jobs.fraud.job import FraudJob
from tests.integration.fraud_campaign import Campaign, case_of, open_cases, status_of


@pytest.fixture
def job(database: Database) -> FraudJob:
    return FraudJob(database)


@pytest.fixture
def campaign(connection: Connection) -> Campaign:
    return Campaign(connection)


def _cheater(campaign: Campaign) -> UUID:
    """Somebody with two accounts of one mailbox; the second one is held."""
    name = uuid4().hex
    campaign.user(email=f"{name}@example.org")
    return campaign.user(email=f"{name}+1@example.org", at=timedelta(hours=1))


def _reward(connection: Connection, user_reward: UUID) -> tuple[str, bool]:
    row = connection.execute(
        "SELECT status, held_at IS NOT NULL FROM campaign_jobs.user_rewards WHERE id = %s", (user_reward,)
    ).fetchone()
    assert row is not None
    return row[0], row[1]


def _deliveries(connection: Connection) -> list[str]:
    return [
        row[0]
        for row in connection.execute(
            "SELECT event #>> '{data,user_reward_id}' FROM campaign_jobs.outbox"
            " WHERE event ->> 'type' = 'job.reward.deliver' AND partition_key = event #>> '{data,user_reward_id}'"
        ).fetchall()
    ]


def _somebody_waits_for_a_row(connection: Connection) -> bool:
    return connection.execute(
        "SELECT true FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"
    ).fetchone() == (True,)


def test_dismissing_delivers_what_was_held(job: FraudJob, campaign: Campaign, connection: Connection) -> None:
    user, other = _cheater(campaign), _cheater(campaign)
    held, never_looked_at, others = (
        campaign.reward(user),
        campaign.reward(user, held=False),
        campaign.reward(other),
    )
    job.run({})
    with connection.transaction():
        dismiss(connection, case_of(connection, user), reason="two people, one mailbox")
    assert _deliveries(connection) == [str(held)]
    assert [_reward(connection, reward) for reward in (held, never_looked_at, others)] == [
        ("earned", False),
        ("earned", False),
        ("earned", True),
    ]
    decided = connection.execute(
        "SELECT status, decision_reason, decided_at IS NOT NULL FROM campaign_jobs.fraud_cases WHERE user_id = %s",
        (user,),
    ).fetchall()
    assert decided == [("dismissed", "two people, one mailbox", True)]


def test_confirming_revokes_what_was_held_and_holds_for_good(
    job: FraudJob, campaign: Campaign, connection: Connection
) -> None:
    user = _cheater(campaign)
    held = campaign.reward(user)
    job.run({})
    with connection.transaction():
        confirm(connection, case_of(connection, user), reason="admitted it")
    assert _reward(connection, held) == ("revoked", True)
    campaign.change(user, email="honest@example.org", user_agent="curl/8")
    report = job.run({})
    assert (report.holding, report.cases_opened, open_cases(connection)) == (1, 0, [])
    assert release_unheld(connection) == 0
    assert _deliveries(connection) == []


@pytest.mark.parametrize("decide", [confirm, dismiss])
def test_a_decision_is_made_once_with_a_reason(
    job: FraudJob, campaign: Campaign, connection: Connection, decide: object
) -> None:
    assert callable(decide)
    user = _cheater(campaign)
    job.run({})
    case_id = case_of(connection, user)
    with pytest.raises(ReasonMissing, match="1 to 2000"):
        decide(connection, case_id, reason="  ")
    with pytest.raises(CaseNotOpen, match="no fraud case"):
        decide(connection, uuid4(), reason="why not")
    decide(connection, case_id, reason="first")
    with pytest.raises(CaseNotOpen, match="only an open case"):
        confirm(connection, case_id, reason="second")
    with pytest.raises(CaseNotOpen, match="only an open case"):
        dismiss(connection, case_id, reason="second")


def test_dismissed_evidence_reopens_only_in_a_higher_band(
    job: FraudJob, campaign: Campaign, connection: Connection
) -> None:
    users = [campaign.user(device="d") for _ in range(4)]
    job.run({})
    for user in users:
        dismiss(connection, case_of(connection, user), reason="a class room")
    campaign.user(device="d")
    report = job.run({})
    assert (report.signals_updated, report.cases_opened) == (4, 1)
    # Neither does a full run reopen it.
    connection.execute("DELETE FROM campaign_jobs.job_watermarks")
    assert job.run({}).cases_opened == 0
    # Eight users on the device are a band above four.
    for _ in range(3):
        campaign.user(device="d")
    job.run({})
    assert {user for user, *_ in open_cases(connection)} >= set(users)


def test_dismissed_evidence_does_not_count_beside_new_evidence(
    job: FraudJob, campaign: Campaign, connection: Connection
) -> None:
    user = _cheater(campaign)
    job.run({})
    dismiss(connection, case_of(connection, user), reason="looked into")
    campaign.change(user, user_agent="curl/8")
    job.run({})
    assert [(row[0], row[2], [entry["check"] for entry in row[5]]) for row in open_cases(connection)] == [
        (user, 40, ["bot"])
    ]


def test_a_retracted_case_releases_what_it_held(
    job: FraudJob, campaign: Campaign, connection: Connection
) -> None:
    user, still = _cheater(campaign), _cheater(campaign)
    held = campaign.reward(user)
    campaign.reward(still)
    job.run({})
    assert release_unheld(connection) == 0
    campaign.change(user, email="really.ann@example.org")
    job.run({})
    assert release_unheld(connection) == 1
    assert (_deliveries(connection), _reward(connection, held)) == ([str(held)], ("earned", False))
    assert release_unheld(connection) == 0


def test_dismissing_ends_a_block(job: FraudJob, connection: Connection) -> None:
    user = _cheater(Campaign(connection, policy={"policy": "block"}))
    job.run({})
    assert status_of(connection, user) == "blocked"
    dismiss(connection, case_of(connection, user), reason="two people")
    assert status_of(connection, user) == "verified"
    assert job.run({}).blocked == 0


def test_a_delivery_that_is_being_held_is_not_forgotten_by_a_dismissal(
    job: FraudJob, campaign: Campaign, connection: Connection, database_url: str
) -> None:
    user = _cheater(campaign)
    reward = campaign.reward(user, held=False)
    job.run({})
    case_id = case_of(connection, user)
    with psycopg.connect(database_url) as delivery:
        # What the reward job does when it finds a hold.
        delivery.execute("SELECT FROM campaign_jobs.fraud_cases WHERE id = %s FOR SHARE", (case_id,))
        decision = threading.Thread(target=dismiss, args=(connection, case_id), kwargs={"reason": "no fraud"})
        decision.start()
        while not _somebody_waits_for_a_row(delivery):
            assert decision.is_alive()
        delivery.execute("UPDATE campaign_jobs.user_rewards SET held_at = now() WHERE id = %s", (reward,))
        delivery.commit()
        decision.join()
    # The caller's connection is in autocommit mode, so each statement of the decision was seen at once.
    assert (_deliveries(connection), _reward(connection, reward)) == ([str(reward)], ("earned", False))


def test_a_dismissal_during_a_run_is_not_overruled_by_it(
    job: FraudJob, campaign: Campaign, connection: Connection, database_url: str
) -> None:
    users = [campaign.user(device="d") for _ in range(4)]
    job.run({})
    reports = []
    with psycopg.connect(database_url) as decision:
        for user in users:
            dismiss(decision, case_of(connection, user), reason="a class room")
        # The signals of all four change within their band, so the run wants their cases, and waits.
        campaign.user(device="d")
        run = threading.Thread(target=lambda: reports.append(job.run({})))
        run.start()
        while not _somebody_waits_for_a_row(connection):
            assert run.is_alive()
        decision.commit()
        run.join()
    assert [report.cases_opened for report in reports] == [1]
    assert not {user for user, *_ in open_cases(connection)} & set(users)
    # What the person decided on stays as it was.
    assert connection.execute(
        "SELECT DISTINCT status, evidence #>> '{0,magnitude}' FROM campaign_jobs.fraud_cases WHERE user_id = ANY (%s)",
        (users,),
    ).fetchall() == [("dismissed", "4")]

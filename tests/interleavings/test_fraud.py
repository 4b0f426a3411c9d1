"""Races of fraud scans with decisions, with each other and with what commits late."""

from datetime import timedelta
from uuid import UUID, uuid4

import pytest

from campaign_jobs.database.connection import Connection
from campaign_jobs.fraud import job as fraud_job
from campaign_jobs.fraud.cases import CaseNotOpen, confirm, dismiss
from campaign_jobs.fraud.job import FraudJob, FraudReport
from tests.integration.fraud_campaign import Campaign, case_of, open_cases, signals
from tests.interleavings.services import in_transaction, writes
from tests.interleavings.stepping import Race

CHANGES = {
    "sign-up": """
INSERT INTO campaign_jobs.waitlist_users (id, campaign_id, email, original_position, device_fingerprint)
VALUES (%s, %s, %s, 99, %s)
""",
    "referral": """
INSERT INTO campaign_jobs.referrals (id, campaign_id, referrer_id, referred_id, status)
VALUES (%s, %s, %s, %s, 'pending')
""",
    "device": "UPDATE campaign_jobs.waitlist_users SET device_fingerprint = %s WHERE id = %s",
}


@pytest.fixture(autouse=True)
def no_margin(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the few seconds by which a watermark lies back, which would hide a wrong one in a test's short time."""
    statement = fraud_job._OLDEST_TRANSACTION
    assert "interval '5 seconds'" in statement
    monkeypatch.setattr(fraud_job, "_OLDEST_TRANSACTION", statement.replace("5 seconds", "0 seconds"))


def a_cheater(campaign: Campaign) -> UUID:
    """Somebody with two accounts of one mailbox; the second one is held."""
    name = uuid4().hex
    campaign.user(email=f"{name}@example.org")
    return campaign.user(email=f"{name}+1@example.org", at=timedelta(hours=1))


def status_of_case(connection: Connection, case: UUID) -> str:
    row = connection.execute("SELECT status FROM campaign_jobs.fraud_cases WHERE id = %s", (case,)).fetchone()
    assert row is not None
    return str(row[0])


def as_a_full_run_has_it(connection: Connection, job: FraudJob) -> None:
    """Assert that the next run, an incremental one, leaves what a full one makes of the same rows."""
    assert not job.run({}).full
    incremental = signals(connection), open_cases(connection)
    connection.execute("UPDATE campaign_jobs.job_watermarks SET rules_version = 'older'")
    assert job.run({}).full
    assert (signals(connection), open_cases(connection)) == incremental


def test_a_dismissal_during_a_scan_lasts_and_releases_once(race: Race, connection: Connection) -> None:
    job = FraudJob(race.first.database)
    for schedule in race.schedules(all_pairs=False):
        campaign = Campaign(connection)
        device = uuid4().hex
        user, *_ = [campaign.user(device=device) for _ in range(4)]
        job.run({})
        user_reward, case = campaign.reward(user), case_of(connection, user)
        # Looked at again, because there is one more of them, but in the same band.
        campaign.user(device=device)
        schedule.run(
            lambda: job.run({}),
            in_transaction(race.second, lambda stepped: dismiss(stepped, case, reason="a household")),
        )
        assert status_of_case(connection, case) == "dismissed"
        job.run({})
        campaign.user(device=device)
        job.run({})
        assert [row for row in open_cases(connection) if row[0] == user] == []
        emitted = connection.execute(
            "SELECT count(*) FROM campaign_jobs.outbox WHERE event #>> '{data,user_reward_id}' = %s",
            (str(user_reward),),
        ).fetchone()
        assert emitted == (1,)


def test_a_decision_and_a_retraction_of_one_case_exclude_each_other(
    race: Race, connection: Connection
) -> None:
    job = FraudJob(race.first.database)
    for schedule in race.schedules(all_pairs=False):
        campaign = Campaign(connection)
        user = a_cheater(campaign)
        job.run({})
        case = case_of(connection, user)
        campaign.change(user, email=f"{uuid4().hex}@example.org")

        def decide() -> str:
            try:
                in_transaction(race.second, lambda stepped: confirm(stepped, case, reason="a farm"))()
            except CaseNotOpen:
                return "retracted"
            return "confirmed"

        report, said = schedule.run(lambda: job.run({}), decide)
        assert (report.cases_retracted, said) in [(1, "retracted"), (0, "confirmed")]
        job.run({})
        assert status_of_case(connection, case) == said


def test_two_scans_never_overlap(race: Race, connection: Connection) -> None:
    first, second = FraudJob(race.first.database), FraudJob(race.second.database)
    campaign = Campaign(connection)
    first.run({})
    for schedule in race.schedules(all_pairs=False):
        a_cheater(campaign)
        reports: tuple[FraudReport, FraudReport] = schedule.run(lambda: first.run({}), lambda: second.run({}))
        assert sum(report.cases_opened for report in reports) == 1
        assert not all(report.overlapping for report in reports)
    as_a_full_run_has_it(connection, first)


@pytest.mark.parametrize("change", CHANGES)
def test_what_commits_during_a_scan_is_found_by_the_next_one(
    race: Race, connection: Connection, change: str
) -> None:
    """The service's transaction is stepped too, so that it begins before a scan and commits in it or after it."""
    job = FraudJob(race.first.database)
    for schedule in race.schedules(all_pairs=False):
        campaign = Campaign(connection)
        device = uuid4().hex
        users = [campaign.user(device=device), campaign.user(device=device), campaign.user()]
        job.run({})
        before = len(signals(connection))
        parameters = {
            "sign-up": (uuid4(), campaign.id, f"{uuid4().hex}@example.org", device),
            "referral": (uuid4(), campaign.id, users[0], users[1]),
            "device": (device, users[2]),
        }
        schedule.run(lambda: job.run({}), writes(race.second, (CHANGES[change], parameters[change])))
        as_a_full_run_has_it(connection, job)
        assert len(signals(connection)) > before

"""Runs of the fraud job: signals and cases over time, overlaps, late commits, policies, blocks."""

import re
import threading
from collections.abc import Iterator
from contextlib import closing
from datetime import timedelta
from uuid import UUID, uuid4

import psycopg
import pytest
from psycopg import sql
from psycopg.conninfo import make_conninfo

from campaign_jobs.database import migrations
from campaign_jobs.database.connection import Connection, Database
from campaign_jobs.fraud import job as fraud_job
from campaign_jobs.fraud.blocking import unblock
from campaign_jobs.fraud.job import FraudJob, StatisticsNotReadable
from local.postgres import PostgresServer
from tests.integration.fraud_campaign import Campaign, found, open_cases, signals, status_of


@pytest.fixture
def job(database: Database) -> FraudJob:
    return FraudJob(database)


@pytest.fixture
def campaign(connection: Connection) -> Campaign:
    return Campaign(connection)


@pytest.fixture
def service(database_url: str) -> Iterator[Connection]:
    """A service's own connection, whose transactions stay open as long as the test likes."""
    with psycopg.connect(database_url) as connection:
        yield connection


@pytest.fixture(autouse=True)
def no_margin(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the few seconds by which a watermark lies back, which would hide a wrong one in a test's short time."""
    statement = fraud_job._OLDEST_TRANSACTION
    assert "interval '5 seconds'" in statement
    monkeypatch.setattr(fraud_job, "_OLDEST_TRANSACTION", statement.replace("5 seconds", "0 seconds"))


def test_the_first_run_is_full_and_the_next_looks_at_what_changed(job: FraudJob, campaign: Campaign) -> None:
    for _ in range(3):
        campaign.user(device="d")
    assert (job.run({}).full, job.run({}).full) == (True, False)
    campaign.user(device="d")
    report = job.run({})
    # One new user, and three signals that are about more users now.
    assert (report.users_scanned, report.signals_added, report.signals_updated) == (1, 1, 3)
    assert (report.cases_opened, report.cases_updated) == (1, 3)


def test_a_run_without_changes_writes_nothing(
    job: FraudJob, campaign: Campaign, connection: Connection
) -> None:
    for _ in range(4):
        campaign.user(device="d")
    job.run({})
    row_versions = (
        "SELECT user_id, ctid::text, xmin::text FROM campaign_jobs.fraud_signals UNION ALL"
        " SELECT user_id, ctid::text, xmin::text FROM campaign_jobs.fraud_cases ORDER BY 1, 2, 3"
    )
    before = connection.execute(row_versions).fetchall()
    assert len(before) == 8
    connection.execute("UPDATE campaign_jobs.job_watermarks SET rules_version = 'older'")
    again = job.run({})
    assert again.full
    assert connection.execute(row_versions).fetchall() == before
    assert (again.signals_added, again.signals_updated, again.signals_retracted) == (0, 0, 0)


def test_a_signal_keeps_when_it_was_first_seen(
    job: FraudJob, campaign: Campaign, connection: Connection
) -> None:
    for _ in range(3):
        campaign.user(device="d")
    job.run({})
    seen = "SELECT first_seen_at, last_seen_at FROM campaign_jobs.fraud_signals WHERE user_id = %s"
    user = signals(connection)[0][0]
    first = connection.execute(seen, (user,)).fetchone()
    campaign.user(device="d")
    job.run({})
    then = connection.execute(seen, (user,)).fetchone()
    assert first is not None
    assert then is not None
    assert then[0] == first[0]
    assert then[1] > first[1]


def test_evidence_that_goes_away_retracts_signals_and_cases(
    job: FraudJob, campaign: Campaign, connection: Connection
) -> None:
    users = [campaign.user(device="d") for _ in range(3)]
    job.run({})
    assert len(open_cases(connection)) == 3
    campaign.change(users[0], device_fingerprint="another")
    report = job.run({})
    assert (report.full, report.signals_retracted, report.cases_retracted) == (False, 3, 3)
    assert (signals(connection), open_cases(connection)) == ([], [])


def test_evidence_too_light_for_a_case_goes_away_too(
    job: FraudJob, campaign: Campaign, connection: Connection
) -> None:
    users = [campaign.user(ip="192.0.2.1") for _ in range(4)]
    job.run({})
    assert (len(signals(connection)), open_cases(connection)) == (4, [])
    campaign.change(users[0], ip="192.0.2.2")
    assert job.run({}).signals_retracted == 4
    assert (signals(connection), open_cases(connection)) == ([], [])


def test_the_first_account_of_a_mailbox_leaving_clears_the_second(
    job: FraudJob, campaign: Campaign, connection: Connection
) -> None:
    """The first account has no signal of its own by which it could be found."""
    first = campaign.user(email="ann@example.org")
    second = campaign.user(email="ann+1@example.org", at=timedelta(hours=1))
    job.run({})
    assert found(connection, second) == {"fake_email": 100}
    campaign.change(first, email="bob@example.org")
    assert not job.run({}).full
    assert found(connection, second) == {}


@pytest.mark.parametrize("how", ["deleted", "moved"])
def test_a_referral_that_goes_away_is_noticed(
    job: FraudJob, campaign: Campaign, connection: Connection, how: str
) -> None:
    referrer, referred, other = campaign.user(device="d"), campaign.user(device="d"), campaign.user()
    referral = campaign.refer(referrer, referred)
    job.run({})
    assert found(connection, referrer) == {"self_referral": 60}
    if how == "deleted":
        connection.execute("DELETE FROM campaign_jobs.referrals WHERE id = %s", (referral,))
    else:
        connection.execute(
            "UPDATE campaign_jobs.referrals SET referrer_id = %s WHERE id = %s", (other, referral)
        )
    assert not job.run({}).full
    assert signals(connection) == []


def test_a_transaction_open_across_a_run_is_seen_by_the_next(
    job: FraudJob, campaign: Campaign, connection: Connection, service: Connection
) -> None:
    campaign.user(device="d")
    campaign.user(device="d")
    late = Campaign(connection)
    late.connection, late.id, late.numbers = service, campaign.id, iter(range(100, 200))  # type: ignore[assignment]
    user = late.user(device="d")
    job.run({})
    job.run({})
    assert signals(connection) == []
    service.commit()
    report = job.run({})
    assert not report.full
    assert found(connection, user) == {"duplicate_device": 40}


def test_a_run_that_meets_another_leaves_at_once(
    job: FraudJob, campaign: Campaign, connection: Connection, service: Connection
) -> None:
    for _ in range(3):
        campaign.user(device="d")
    assert service.execute(fraud_job._TRY_LOCK).fetchone() == (True,)
    report = job.run({})
    assert report.overlapping
    assert signals(connection) == []
    service.rollback()
    assert not job.run({}).overlapping
    assert len(signals(connection)) == 3


def test_doubled_ticks_at_once_find_everything_once(
    database_url: str, campaign: Campaign, connection: Connection
) -> None:
    for _ in range(50):
        campaign.user(device="d")
    databases = [Database(database_url) for _ in range(4)]
    reports = []
    threads = [
        threading.Thread(target=lambda database=database: reports.append(FraudJob(database).run({})))
        for database in databases
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for database in databases:
        database.close()
    assert sum(report.signals_added for report in reports) == 50
    assert len(open_cases(connection)) == 50


def test_a_role_that_cannot_see_other_sessions_is_told(
    database_url: str, campaign: Campaign, connection: Connection
) -> None:
    role = f"fraud_{campaign.id.hex}"
    name = sql.Identifier(role)
    connection.execute(sql.SQL("CREATE ROLE {} LOGIN").format(name))
    try:
        connection.execute(
            sql.SQL(
                "GRANT ALL ON SCHEMA campaign_jobs TO {0}; GRANT ALL ON ALL TABLES IN SCHEMA campaign_jobs TO {0}"
            ).format(name)
        )
        with closing(Database(make_conninfo(database_url, user=role))) as database:
            with pytest.raises(StatisticsNotReadable, match=f'GRANT pg_read_all_stats TO "{role}"'):
                FraudJob(database).run({})
            connection.execute(sql.SQL("GRANT pg_read_all_stats TO {}").format(name))
            assert FraudJob(database).run({}).full
    finally:
        connection.execute(sql.SQL("DROP OWNED BY {0}; DROP ROLE {0}").format(name))


def test_a_change_of_policy_makes_the_next_run_a_full_one(
    job: FraudJob, campaign: Campaign, connection: Connection
) -> None:
    for _ in range(3):
        campaign.user(device="d")
    job.run({})
    campaign.set_policy({"case_from": 50})
    report = job.run({})
    assert (report.full, report.signals_retracted, report.cases_retracted) == (True, 0, 3)
    Campaign(connection)
    assert not job.run({}).full


def _cheaters(campaign: Campaign) -> tuple[UUID, UUID]:
    first = campaign.user(email="ann@example.org", device="d")
    second = campaign.user(email="ann+1@example.org", device="d", at=timedelta(hours=1))
    campaign.refer(first, second)
    return first, second


@pytest.mark.parametrize(
    ("policy", "holding", "status"),
    [("flag", 0, "verified"), ("hold", 2, "verified"), ("block", 2, "blocked")],
)
def test_the_policy_says_what_high_risk_leads_to(
    job: FraudJob, connection: Connection, policy: str, holding: int, status: str
) -> None:
    users = _cheaters(Campaign(connection, policy={"policy": policy}))
    report = job.run({})
    assert report.holding == holding
    assert {status_of(connection, user) for user in users} == {status}
    assert report.blocked == (2 if policy == "block" else 0)
    # A blocked user still counts, so that a block does not undo itself.
    again = job.run({})
    assert (again.blocked, again.unblocked, again.cases_retracted) == (0, 0, 0)
    assert {status_of(connection, user) for user in users} == {status}


def test_a_block_ends_with_its_reason_and_gives_the_status_back(
    job: FraudJob, connection: Connection
) -> None:
    campaign = Campaign(connection, policy={"policy": "block"})
    first, second = _cheaters(campaign)
    campaign.change(second, status="pending", verified_at=None)
    removed_by_service, _ = _cheaters(Campaign(connection, policy={"policy": "block"}))
    job.run({})
    assert (status_of(connection, first), status_of(connection, second)) == ("blocked", "blocked")
    campaign.change(removed_by_service, status="removed")
    campaign.set_policy({"policy": "hold"})
    assert job.run({}).unblocked >= 2
    assert (status_of(connection, first), status_of(connection, second)) == ("verified", "pending")
    assert status_of(connection, removed_by_service) == "removed"


def test_a_block_by_a_service_stays_the_services(job: FraudJob, connection: Connection) -> None:
    campaign = Campaign(connection, policy={"policy": "block"})
    first, _ = _cheaters(campaign)
    campaign.change(first, status="blocked")
    assert job.run({}).blocked == 1
    campaign.set_policy({})
    job.run({})
    assert status_of(connection, first) == "blocked"


def test_a_status_that_can_no_longer_be_given_back_stops_nobody(
    job: FraudJob, connection: Connection
) -> None:
    """A user may not be verified without verified_at, which a service has cleared meanwhile."""
    campaign = Campaign(connection, policy={"policy": "block"})
    first, second = _cheaters(campaign)
    job.run({})
    campaign.change(first, verified_at=None)
    campaign.set_policy({})
    assert job.run({}).unblocked == 2
    assert (status_of(connection, first), status_of(connection, second)) == ("pending", "verified")


@pytest.mark.parametrize(
    ("unreadable", "problem"),
    [
        # How deep is too deep depends on the Python: what one cannot read, another finds to be no preset.
        ('{"preset": ' + "[" * 3_000 + "]" * 3_000 + "}", "nested too deeply|preset: "),
        ('{"preset": ' + "[" * 900 + "]" * 900 + "}", "preset: "),
        ('{"case_from": 1e9999}', "too many digits"),
        ('{"case_from": 1e400}', "case_from"),
    ],
)
def test_a_policy_that_cannot_be_read_is_reported_and_spares_the_others(
    job: FraudJob, connection: Connection, unreadable: str, problem: str
) -> None:
    campaign, other = Campaign(connection), Campaign(connection, policy={"policy": "block"})
    connection.execute(
        "UPDATE campaign_jobs.campaigns SET fraud_policy = %s WHERE id = %s", (unreadable, campaign.id)
    )
    for each in (campaign, other):
        _cheaters(each)
    report = job.run({})
    (reported,) = report.invalid_policies
    assert re.match(f"campaign {campaign.id}: .*({problem})", reported)
    assert (report.holding, report.blocked) == (4, 2)
    assert not job.run({}).full


def test_a_user_stays_held_until_unblocked(job: FraudJob, connection: Connection) -> None:
    campaign = Campaign(connection, policy={"policy": "block"})
    users = _cheaters(campaign)
    job.run({})
    held = "SELECT count(*) FROM campaign_jobs.held_users WHERE user_id = ANY (%s)"
    connection.execute("UPDATE campaign_jobs.fraud_cases SET status = 'retracted'")
    assert connection.execute(held, (list(users),)).fetchone() == (2,)
    connection.execute("DELETE FROM campaign_jobs.position_requests")
    # Neither is in the ranking any more, so only the end of the hold says that referrals count again.
    connection.execute("UPDATE campaign_jobs.waitlist_users SET status = 'removed'")
    assert unblock(connection) == 2
    assert connection.execute(held, (list(users),)).fetchone() == (0,)
    assert connection.execute("SELECT count(*) FROM campaign_jobs.position_requests").fetchone() == (1,)


def test_the_longest_address_has_room_as_evidence(postgres_server: PostgresServer) -> None:
    """In some locales a letter's lower case is two characters, so the mailbox is longer than the address."""
    name = f"test_{uuid4().hex}"
    create = "CREATE DATABASE {} TEMPLATE template0 LOCALE_PROVIDER builtin BUILTIN_LOCALE 'PG_UNICODE_FAST'"
    with psycopg.connect(postgres_server.url(), autocommit=True) as server:
        server.execute(sql.SQL(create).format(sql.Identifier(name)))
    url = postgres_server.url(name)
    migrations.apply(url)
    database = Database(url)
    with psycopg.connect(url, autocommit=True) as connection:
        campaign = Campaign(connection)
        campaign.user(email="İ" * 240 + "@example.org")
        user = campaign.user(email="İ" * 240 + "+1@example.org", at=timedelta(hours=1))
        assert FraudJob(database).run({}).signals_added == 1
        assert found(connection, user) == {"fake_email": 100}
    database.close()
    postgres_server.drop_database(name)

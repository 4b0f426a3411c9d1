"""Each check on real rows: what it must find, and which honest people it must leave alone."""

from datetime import timedelta

import pytest

from campaign_jobs.database.connection import Connection, Database
from campaign_jobs.fraud.job import FraudJob
from tests.integration.fraud_campaign import Campaign, found, open_cases, signals


@pytest.fixture
def job(database: Database) -> FraudJob:
    return FraudJob(database)


@pytest.fixture
def campaign(connection: Connection) -> Campaign:
    return Campaign(connection)


def test_honest_people_leave_no_signal(job: FraudJob, campaign: Campaign) -> None:
    users = [
        campaign.user(ip=f"192.0.2.{n}", device=f"device{n}", at=timedelta(minutes=n)) for n in range(15)
    ]
    for n, referred in enumerate(users[1:]):
        campaign.refer(users[0], referred, at=timedelta(minutes=10 * n))
    report = job.run({})
    assert (report.users_scanned, report.signals_added, report.holding) == (15, 0, 0)


@pytest.mark.parametrize(
    ("referrer", "referred", "weight", "magnitude"),
    [
        ({"email": "ann@example.org"}, {"email": "Ann+2@example.org"}, 100, 4),
        ({"device": "d"}, {"device": "d"}, 60, 2),
        ({"ip": "192.0.2.1"}, {"ip": "192.0.2.1"}, 30, 1),
        ({"ip": "192.0.2.1", "device": "d"}, {"ip": "192.0.2.1", "device": "d"}, 90, 3),
        ({"email": "a.n.n@gmail.com", "device": "d"}, {"email": "ann@googlemail.com", "device": "d"}, 100, 6),
    ],
)
def test_self_referral_adds_up_what_both_sides_share(
    job: FraudJob,
    campaign: Campaign,
    connection: Connection,
    referrer: dict[str, str],
    referred: dict[str, str],
    weight: int,
    magnitude: int,
) -> None:
    first, second = campaign.user(**referrer), campaign.user(**referred)
    campaign.refer(first, second)
    job.run({})
    both = [row for row in signals(connection) if row[1] == "self_referral"]
    assert {row[0] for row in both} == {first, second}
    assert {(row[4], row[5]) for row in both} == {(weight, magnitude)}
    assert {row[6] for row in both} == {first, second}


def test_sharing_without_a_referral_is_no_self_referral(
    job: FraudJob, campaign: Campaign, connection: Connection
) -> None:
    campaign.user(ip="192.0.2.1", device="d")
    campaign.user(ip="192.0.2.1", device="d")
    job.run({})
    assert signals(connection) == []


@pytest.mark.parametrize(("minutes_apart", "weight"), [(6.0, 40), (6.1, None)])
def test_velocity_counts_any_hour(
    job: FraudJob, campaign: Campaign, connection: Connection, minutes_apart: float, weight: int | None
) -> None:
    """Eleven referrals, six minutes apart, are within an hour; a little slower, any hour sees ten."""
    referrer = campaign.user()
    for n in range(11):
        # Across the full hour, so that counting by clock hours would miss them.
        campaign.refer(referrer, campaign.user(), at=timedelta(minutes=30 + n * minutes_apart))
    job.run({})
    assert found(connection, referrer).get("velocity") == weight
    assert {row[1] for row in signals(connection)} == ({"velocity"} if weight else set())


def test_velocity_reports_the_largest_hour_and_ignores_removed_people(
    job: FraudJob, campaign: Campaign, connection: Connection
) -> None:
    referrer = campaign.user()
    referred = [campaign.user() for _ in range(25)]
    for n, user in enumerate(referred):
        campaign.refer(referrer, user, at=timedelta(hours=3 * (n // 13), minutes=n))
    campaign.change(referred[0], status="removed")
    job.run({})
    assert [(row[0], row[5]) for row in signals(connection)] == [(referrer, 12)]


@pytest.mark.parametrize(
    ("email", "weight"),
    [
        ("x@mailinator.com", 35),
        ("x@eu.deep.mailinator.com", 35),
        ("x@mailinator.com.example.org", None),
        ("x@privaterelay.appleid.com", None),
        ("x@abc.mozmail.com", None),
        ("x@gmail.com", None),
    ],
)
def test_fake_email_knows_disposable_domains(
    job: FraudJob, campaign: Campaign, connection: Connection, email: str, weight: int | None
) -> None:
    user = campaign.user(email=email)
    job.run({})
    assert found(connection, user).get("fake_email") == weight


def test_fake_email_names_all_but_the_earliest_account_of_a_mailbox(
    job: FraudJob, campaign: Campaign, connection: Connection
) -> None:
    second = campaign.user(email="ann+1@example.org", at=timedelta(hours=1))
    first = campaign.user(email="ann@example.org")
    third = campaign.user(email="ann+2@example.org", at=timedelta(hours=2))
    other = Campaign(connection)
    other.user(email="ann@example.org")
    job.run({})
    assert {row[0]: (row[4], row[5], row[6]) for row in signals(connection)} == {
        second: (100, 3, first),
        third: (100, 3, first),
    }


@pytest.mark.parametrize(
    ("user_agent", "weight"),
    [
        ("python-requests/2.32", 40),
        ("Mozilla/5.0 (Linux; Android 10; CUBOT X20) Mobile Safari/537.36", None),
        (None, None),
    ],
)
def test_bot_knows_programs_from_browsers(
    job: FraudJob, campaign: Campaign, connection: Connection, user_agent: str | None, weight: int | None
) -> None:
    user = campaign.user(user_agent=user_agent)
    job.run({})
    assert found(connection, user).get("bot") == weight


def test_a_user_agent_too_long_for_an_index_does_not_fail_the_run(
    job: FraudJob, campaign: Campaign, connection: Connection
) -> None:
    user = campaign.user(user_agent="curl/8 " + "".join(chr(0x10000 + n * 7) for n in range(990)))
    job.run({})
    assert found(connection, user) == {"bot": 40}


@pytest.mark.parametrize(
    ("column", "check", "allowed", "weight"),
    [("ip", "duplicate_ip", 3, 20), ("device", "duplicate_device", 2, 40)],
)
def test_duplicates_count_from_above_the_threshold_within_a_campaign(
    job: FraudJob,
    campaign: Campaign,
    connection: Connection,
    column: str,
    check: str,
    allowed: int,
    weight: int,
) -> None:
    shared = {"ip": "2001:db8::1", "device": "d"}[column]
    users = [campaign.user(**{column: shared}) for _ in range(allowed)]
    elsewhere = Campaign(connection)
    elsewhere.user(**{column: shared})
    job.run({})
    assert signals(connection) == []

    users.append(campaign.user(**{column: shared}))
    job.run({})
    assert {row[0]: (row[1], row[2], row[4], row[5]) for row in signals(connection)} == dict.fromkeys(
        users, (check, shared, weight, allowed + 1)
    )


def test_removed_users_do_not_count_and_blocked_ones_do(
    job: FraudJob, campaign: Campaign, connection: Connection
) -> None:
    users = [campaign.user(device="d") for _ in range(4)]
    campaign.change(users[0], status="removed")
    campaign.change(users[1], status="blocked")
    job.run({})
    assert {row[0] for row in signals(connection)} == set(users[1:])


def test_an_allowlisted_address_says_nothing(
    job: FraudJob, campaign: Campaign, connection: Connection
) -> None:
    campaign.set_policy({"ip_allowlist": ["192.0.2.0/24", "2001:db8::/32"]})
    for ip in ("192.0.2.7", "2001:db8::7", "198.51.100.7"):
        users = [campaign.user(ip=ip) for _ in range(4)]
        campaign.refer(users[0], users[1])
    job.run({})
    assert {row[2] for row in signals(connection) if row[1] == "duplicate_ip"} == {"198.51.100.7"}
    assert len([row for row in signals(connection) if row[1] == "self_referral"]) == 2


def test_a_campaign_switches_checks_off_and_weighs_them(
    job: FraudJob, campaign: Campaign, connection: Connection
) -> None:
    campaign.set_policy({
        "checks": {
            "bot": {"enabled": False},
            "duplicate_device": {"threshold": 1, "weight": 70},
            "fake_email": {"disposable_weight": 5},
        }
    })  # fmt: skip
    user = campaign.user(user_agent="curl/8", device="d", email="x@mailinator.com")
    campaign.user(device="d")
    job.run({})
    assert found(connection, user) == {"duplicate_device": 70, "fake_email": 5}


def test_a_household_that_shares_an_address_is_never_held(
    job: FraudJob, campaign: Campaign, connection: Connection
) -> None:
    home = [campaign.user(ip="192.0.2.1") for _ in range(4)]
    neighbors = [campaign.user(ip="192.0.2.9") for _ in range(6)]
    for flatmate in home[1:]:
        campaign.refer(home[0], flatmate)
    report = job.run({})
    assert report.holding == 0
    assert {(row[0], row[2]) for row in open_cases(connection)} == {(user, 50) for user in home}
    assert found(connection, neighbors[0]) == {"duplicate_ip": 20}


def test_an_invalid_policy_is_named_and_the_default_is_in_force(
    job: FraudJob, campaign: Campaign, connection: Connection
) -> None:
    campaign.set_policy({"case_form": 10, "policy": "block"})
    other = Campaign(connection, policy={"policy": "flag"})
    cheater = (
        campaign.user(email="ann@example.org"),
        campaign.user(email="ann+1@example.org", at=timedelta(1)),
    )
    flagged = other.user(email="ann@example.org"), other.user(email="ann+1@example.org", at=timedelta(1))
    report = job.run({})
    assert [problem.split(":")[0] for problem in report.invalid_policies] == [f"campaign {campaign.id}"]
    assert "case_form" in report.invalid_policies[0]
    assert {row[0]: (row[3], row[4]) for row in open_cases(connection)} == {
        cheater[1]: (True, False),
        flagged[1]: (False, False),
    }

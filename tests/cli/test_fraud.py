"""Cases are listed, shown with their evidence, and decided by a person."""

from datetime import timedelta
from uuid import UUID, uuid4

import pytest

from campaign_jobs.database.connection import Connection, Database
from campaign_jobs.fraud.job import FraudJob
from campaign_jobs_cli import fraud
from tests.cli.conftest import Command
from tests.integration.fraud_campaign import Campaign, case_of, status_of


@pytest.fixture
def campaign(connection: Connection) -> Campaign:
    return Campaign(connection)


@pytest.fixture
def cheater(campaign: Campaign, database: Database) -> UUID:
    """Somebody with two accounts of one mailbox, whose second one is held, with a reward."""
    first = campaign.user(email="ada@example.org")
    cheater = campaign.user(email="ada+1@example.org", at=timedelta(hours=1))
    campaign.refer(first, cheater)
    campaign.reward(cheater)
    FraudJob(database).run({})
    return cheater


def decision(connection: Connection, case: UUID) -> tuple[str, str | None]:
    row = connection.execute(
        "SELECT status, decision_reason FROM campaign_jobs.fraud_cases WHERE id = %s", (case,)
    ).fetchone()
    assert row is not None
    return row[0], row[1]


def rewards(connection: Connection) -> list[tuple[str, bool]]:
    return connection.execute("SELECT status, held_at IS NOT NULL FROM campaign_jobs.user_rewards").fetchall()


def test_open_cases_are_listed_the_riskiest_first(
    command: Command, campaign: Campaign, connection: Connection, cheater: UUID
) -> None:
    rows = command("fraud", "list", "--output", "json").json
    assert rows[0]["risk_score"] == max(row["risk_score"] for row in rows)
    (row,) = (row for row in rows if row["user_id"] == str(cheater))
    assert row["case_id"] == str(case_of(connection, cheater))
    assert (row["status"], row["holding"], row["rewards_held"], row["referrals_affected"]) == (
        "open",
        True,
        1,
        1,
    )
    assert row["checks"] == "fake_email, self_referral"
    assert command("fraud", "list", "--status", "confirmed", "--output", "json").json == []
    assert len(command("fraud", "list", "--limit", "1", "--output", "json").json) == 1
    other = Campaign(connection)
    assert command("fraud", "list", "--campaign", other.id, "--output", "json").json == []
    assert command("fraud", "list", "--status", "odd").code == 2


@pytest.mark.parametrize("by", ["case", "user", "email"])
def test_a_case_shows_its_evidence(command: Command, connection: Connection, cheater: UUID, by: str) -> None:
    which = {"case": case_of(connection, cheater), "user": cheater, "email": "ada+1@example.org"}[by]
    (case,) = command("fraud", "show", which, "--output", "json").json["cases"]
    assert {entry["check"] for entry in case["evidence"]} == {"fake_email", "self_referral"}
    assert {signal["related_to"] for signal in case["signals_now"]} == {"ada@example.org"}
    assert [reward["status"] for reward in case["rewards"]] == ["earned"]
    page = command("fraud", "show", which).out
    assert "accounts_of_the_mailbox" in page and "self_referral" in page


def test_a_case_that_is_not_there(command: Command, connection: Connection) -> None:
    assert command("fraud", "show", uuid4()).code == 1
    assert command("fraud", "show", "nobody@example.org").code == 1
    assert command("fraud", "show", "oops").code == 2
    assert command("fraud", "confirm", uuid4(), "--reason", "seen", "--yes").code == 1


def test_confirming_revokes_what_was_held(command: Command, connection: Connection, cheater: UUID) -> None:
    case = case_of(connection, cheater)
    asked = command("fraud", "confirm", case, "--reason", "one person")
    assert asked.code == 3 and "revoked" in asked.out
    assert decision(connection, case) == ("open", None)
    printed = command("fraud", "confirm", case, "--reason", "one person", "--reviewer", "Grace", "--yes")
    assert printed.code == 0, printed.err
    assert decision(connection, case) == ("confirmed", "one person (decided by Grace)")
    assert rewards(connection) == [("revoked", True)]


def test_dismissing_delivers_what_was_held(command: Command, connection: Connection, cheater: UUID) -> None:
    case = case_of(connection, cheater)
    requests = connection.execute("SELECT count(*) FROM campaign_jobs.position_requests").fetchone()
    printed = command("fraud", "dismiss", case, "--reason", "two people", "--yes", "--output", "json")
    reason = f"two people (decided by {fraud.login_name()})"
    assert printed.json == {"decision": "dismiss", "cases": [str(case)], "reason": reason}
    assert "delivered" in printed.err and "1 count again" in printed.err
    assert decision(connection, case) == ("dismissed", reason)
    assert rewards(connection) == [("earned", False)]
    (event,) = connection.execute("SELECT event ->> 'type' FROM campaign_jobs.outbox").fetchall()
    assert event == ("job.reward.deliver",)
    after = connection.execute("SELECT count(*) FROM campaign_jobs.position_requests").fetchone()
    assert requests is not None and after == (requests[0] + 1,), "positions are calculated again"
    again = command("fraud", "dismiss", case, "--reason", "two people", "--yes")
    assert again.code == 2 and "dismissed already" in again.err


def test_a_block_ends_with_the_dismissal(
    command: Command, connection: Connection, database: Database
) -> None:
    campaign = Campaign(connection, policy={"policy": "block"})
    campaign.user(email="ada@example.org")
    user = campaign.user(email="ada+1@example.org", at=timedelta(hours=1))
    FraudJob(database).run({})
    assert status_of(connection, user) == "blocked"
    printed = command("fraud", "dismiss", case_of(connection, user), "--reason", "two people", "--yes")
    assert "unblocked" in printed.out
    assert status_of(connection, user) == "verified"


def test_several_cases_are_decided_together_or_not_at_all(
    command: Command, campaign: Campaign, connection: Connection, database: Database, cheater: UUID
) -> None:
    third = campaign.user(email="ada+2@example.org", at=timedelta(hours=2))
    FraudJob(database).run({})
    one, other = case_of(connection, cheater), case_of(connection, third)
    assert command("fraud", "confirm", one, uuid4(), "--reason", "seen", "--yes").code == 1
    assert decision(connection, one) == ("open", None)
    assert command("fraud", "confirm", one, other, "--reason", "seen", "--yes").code == 0
    assert decision(connection, one)[0] == decision(connection, other)[0] == "confirmed"


@pytest.mark.parametrize("reason", ["", "  ", "x" * 2_000])
def test_a_decision_needs_a_reason(
    command: Command, connection: Connection, cheater: UUID, reason: str
) -> None:
    case = case_of(connection, cheater)
    assert command("fraud", "confirm", case, "--reason", reason, "--yes").code == 2
    assert decision(connection, case) == ("open", None)

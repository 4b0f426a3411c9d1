"""Addresses that are never written to: in our table, and on SES's list of the account."""

from collections.abc import Iterator

import pytest

from campaign_jobs.database.connection import Connection, Database
from campaign_jobs.erasing import erase
from campaign_jobs_cli import suppressions_ses, targets
from campaign_jobs_cli.targets import Target
from local.aws import AwsStandIn
from tests.cli.conftest import Command, Endpoints
from tests.integration.email_campaign import MailCampaign


@pytest.fixture
def target(endpoints: Endpoints, aws: AwsStandIn) -> Iterator[Target]:
    endpoints.set(aws_endpoint_url=aws.endpoint_url)
    found = targets.find("local", directory=endpoints.directory)
    yield found
    for entry in list(suppressions_ses.listed(found)):
        suppressions_ses.delete(found, entry["address"])


def stored(connection: Connection) -> dict[str, str]:
    return dict(connection.execute("SELECT address, reason FROM campaign_jobs.email_suppressions").fetchall())


def test_adding_and_removing_here(command: Command, connection: Connection) -> None:
    campaign = MailCampaign(connection)
    user = campaign.add_user()
    asked = command("suppressions", "add", campaign.address(user).upper())
    assert asked.code == 3 and stored(connection) == {}
    assert campaign.address(user) in asked.out, "what it would do is shown before"
    added = command("suppressions", "add", campaign.address(user).upper(), "--yes", "--output", "json")
    assert added.json == {"suppressed": [campaign.address(user)]}
    assert stored(connection) == {campaign.address(user): "manual"}
    listed = command("suppressions", "list", "--output", "json").json
    assert [(each["address"], each["list"], each["reason"]) for each in listed] == [
        (campaign.address(user), "campaign-jobs", "manual")
    ]
    removed = command(
        "suppressions", "remove", campaign.address(user), "--keep-ses", "--yes", "--output", "json"
    )
    assert removed.json["removed_here"] == 1
    assert stored(connection) == {}


def test_an_operators_word_replaces_a_bounce_and_is_listed_by_reason(
    command: Command, connection: Connection
) -> None:
    connection.execute(
        "INSERT INTO campaign_jobs.email_suppressions (address, reason)"
        " VALUES ('a@example.org', 'bounce'), ('b@example.net', 'complaint')"
    )
    assert command("suppressions", "add", "a@example.org", "--yes").code == 0
    assert stored(connection) == {"a@example.org": "manual", "b@example.net": "complaint"}
    found = command("suppressions", "list", "--reason", "complaint", "--output", "json").json
    assert [each["address"] for each in found] == ["b@example.net"]
    found = command("suppressions", "list", "--containing", "@EXAMPLE.org", "--output", "json").json
    assert [each["address"] for each in found] == ["a@example.org"]


def test_an_address_of_somebody_who_was_erased_is_found_by_its_hash(
    command: Command, connection: Connection, database: Database
) -> None:
    campaign = MailCampaign(connection)
    user = campaign.add_user()
    address = campaign.address(user)
    assert command("suppressions", "add", address, "--yes").code == 0
    erase(database, user)
    assert address not in stored(connection)
    removed = command("suppressions", "remove", address, "--keep-ses", "--yes", "--output", "json")
    assert removed.json["removed_here"] == 1
    assert stored(connection) == {}


def test_the_list_of_the_account_is_named_and_shown(command: Command, target: Target) -> None:
    target.client("sesv2").put_suppressed_destination(EmailAddress="gone@example.org", Reason="COMPLAINT")
    printed = command("suppressions", "list")
    assert "gone@example.org" not in printed.out
    assert "SES has a suppression list of its own" in printed.err and "--ses" in printed.err
    (entry,) = command("suppressions", "list", "--ses", "--output", "json").json
    assert (entry["address"], entry["list"], entry["reason"]) == (
        "gone@example.org",
        "SES account",
        "complaint",
    )


def test_removing_takes_an_address_off_both_lists(
    command: Command, target: Target, connection: Connection
) -> None:
    command("suppressions", "add", "Gone@example.org", "--yes")
    target.client("sesv2").put_suppressed_destination(EmailAddress="Gone@example.org", Reason="COMPLAINT")
    words = ["suppressions", "remove", "Gone@example.org", "--yes", "--output", "json"]
    printed = command(*words)
    assert printed.code == 0, printed.err
    assert "1 of them complained" in printed.err
    assert (printed.json["removed_here"], printed.json["removed_from_ses"]) == (1, 1)
    assert stored(connection) == {}
    assert list(suppressions_ses.listed(target)) == []
    again = command(*words)
    assert (again.json["removed_here"], again.json["removed_from_ses"]) == (0, 0)


def test_a_reason_that_is_none(command: Command, connection: Connection) -> None:
    printed = command("suppressions", "list", "--reason", "bounced")
    assert printed.code == 2 and "allowed are bounce, complaint, manual" in printed.err


def test_a_long_list_is_read_to_its_end(target: Target) -> None:
    ses = target.client("sesv2")
    for number in range(3):
        ses.put_suppressed_destination(EmailAddress=f"{number}@example.org", Reason="BOUNCE")
    first = ses.list_suppressed_destinations(PageSize=2)
    assert len(first["SuppressedDestinationSummaries"]) == 2
    assert "NextToken" in first, "the stand-in turns pages, as SES does"
    assert len(list(suppressions_ses.listed(target))) == 3


def test_what_is_no_address_is_refused(command: Command, connection: Connection) -> None:
    printed = command("suppressions", "add", "nobody", "a@example.org", "--yes")
    assert printed.code == 2 and "'nobody'" in printed.err
    assert stored(connection) == {}


def test_what_ses_refuses_is_one_line(
    command: Command, endpoints: Endpoints, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    printed = command("suppressions", "list", "--ses")
    assert printed.code == 1
    assert "endpoint" in printed.err and "Traceback" not in printed.err

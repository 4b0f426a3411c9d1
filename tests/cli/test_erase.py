"""Erasing a person by the command line: shown first, in every campaign or in one, and still not written to."""

from uuid import UUID

from campaign_jobs.database.connection import Connection
from campaign_jobs_cli.errors import ExitCode
from tests.cli.conftest import Command
from tests.integration.email_campaign import MailCampaign

ADDRESS = "ada@example.org"


def email_of(connection: Connection, user: UUID) -> str:
    row = connection.execute(
        "SELECT email FROM campaign_jobs.waitlist_users WHERE id = %s", [user]
    ).fetchone()
    assert row is not None
    return str(row[0])


def test_what_would_go_is_shown_and_nothing_goes_unasked(command: Command, connection: Connection) -> None:
    user = MailCampaign(connection).add_user(email=ADDRESS)
    declined = command("erase", ADDRESS)
    assert declined.code == ExitCode.DECLINED
    assert ADDRESS in declined.out
    assert email_of(connection, user) == ADDRESS


def test_an_address_is_erased_in_every_campaign(command: Command, connection: Connection) -> None:
    users = [MailCampaign(connection).add_user(email=ADDRESS) for _ in range(2)]
    erased = command("erase", ADDRESS.upper(), "--yes", "--output", "json").json
    assert {each["user_id"] for each in erased} == set(map(str, users))
    assert {each["user"] for each in erased} == {1}
    assert all(email_of(connection, user).endswith("@erased.invalid") for user in users)
    assert command("erase", ADDRESS, "--yes").code == ExitCode.FAILED
    # Once more, by id, does no harm and says so.
    assert command("erase", str(users[0]), "--yes", "--output", "json").json[0]["user"] == 0


def test_in_one_campaign_alone(command: Command, connection: Connection) -> None:
    here, there = MailCampaign(connection), MailCampaign(connection)
    gone, stays = here.add_user(email=ADDRESS), there.add_user(email=ADDRESS)
    assert command("erase", ADDRESS, "--campaign", str(here.id), "--yes").code == 0
    assert email_of(connection, gone) != ADDRESS
    assert email_of(connection, stays) == ADDRESS


def test_who_was_suppressed_stays_so_until_an_operator_says_otherwise(
    command: Command, connection: Connection
) -> None:
    MailCampaign(connection).add_user(email=ADDRESS)
    command("suppressions", "add", ADDRESS, "--yes")
    assert command("erase", ADDRESS, "--yes").code == 0
    rejoined = MailCampaign(connection).add_user(email=ADDRESS)
    assert (
        command("explain", str(rejoined), "--output", "json").json["people"][0]["user"]["suppressed"]
        == "manual"
    )
    removed = command("suppressions", "remove", ADDRESS, "--keep-ses", "--yes", "--output", "json").json
    assert removed["removed_here"] == 1

"""Templates are listed, looked at, checked and tried, without anybody's mail being touched."""

import json
from collections.abc import Iterator
from pathlib import Path
from uuid import uuid4

import pytest

from campaign_jobs.database.connection import Connection
from campaign_jobs.email.rendering import EMAIL_TYPES
from campaign_jobs_cli import suppressions_ses, targets
from campaign_jobs_cli.targets import Target
from local.aws import AwsStandIn
from local.aws.mails import Mail, read_mails
from tests.cli.conftest import Command, Endpoints
from tests.conftest import SENDER_DOMAIN
from tests.integration.email_campaign import MailCampaign


@pytest.fixture
def campaign(connection: Connection) -> MailCampaign:
    return MailCampaign(connection)


@pytest.fixture
def target(endpoints: Endpoints, aws: AwsStandIn) -> Iterator[Target]:
    endpoints.set(aws_endpoint_url=aws.endpoint_url, default_sender=f"hello@{SENDER_DOMAIN}")
    found = targets.find("local", directory=endpoints.directory)
    yield found
    for entry in list(suppressions_ses.listed(found)):
        suppressions_ses.delete(found, entry["address"])


def files(directory: Path, *, html: str = "<p>Hello {{ user_first_name }}</p>") -> Path:
    directory.mkdir(exist_ok=True)
    (directory / "subject.txt").write_text("Hello from {{ campaign_name }}\n")
    (directory / "body.html").write_text(html)
    (directory / "body.txt").write_text("Hello {{ user_first_name }}")
    return directory


def sent_to(aws: AwsStandIn, address: str) -> list[Mail]:
    return [mail for mail in read_mails(aws.mail_directory) if mail.to == [address]]


def test_what_is_stored_stands_beside_the_built_in_ones(command: Command, campaign: MailCampaign) -> None:
    own = campaign.add_template("welcome", version=3, subject="Own")
    campaign.add_template("milestone", everywhere=True, subject="For all")
    rows = command("templates", "list", "--campaign", campaign.id, "--output", "json").json
    found = {(row["type"], row["whose"]): row for row in rows}
    assert found[("welcome", "Launch")]["id"] == str(own)
    assert found[("welcome", "Launch")]["version"] == 3
    assert found[("welcome", "built-in")]["enabled"] is False
    assert found[("milestone", "every campaign")]["enabled"] is True
    assert found[("milestone", "built-in")]["enabled"] is False
    assert found[("verification", "built-in")]["enabled"] is True
    assert {row["type"] for row in rows} == set(EMAIL_TYPES)


@pytest.mark.parametrize("type_", EMAIL_TYPES)
def test_a_preview_is_two_files(command: Command, tmp_path: Path, type_: str) -> None:
    printed = command("templates", "preview", type_, "--to", tmp_path / "out", "--output", "json")
    assert printed.code == 0, printed.err
    assert printed.json["template"] == f"built-in {type_}"
    assert "<html" in Path(printed.json["html_file"]).read_text(encoding="utf-8")
    assert Path(printed.json["txt_file"]).read_text(encoding="utf-8").strip()


def test_a_preview_that_cannot_be_written(command: Command, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    printed = command("templates", "preview", "welcome", "--to", tmp_path / "file" / "below")
    assert printed.code == 2 and "Not a directory" in printed.err


def test_a_preview_without_a_place_goes_where_nobody_else_looks(command: Command) -> None:
    printed = command("templates", "preview", "welcome", "--output", "json")
    directory = Path(printed.json["html_file"]).parent
    assert directory.stat().st_mode & 0o077 == 0
    for file in directory.iterdir():
        file.unlink()
    directory.rmdir()


def test_a_preview_with_the_values_of_a_user(
    command: Command, campaign: MailCampaign, connection: Connection, tmp_path: Path
) -> None:
    user = campaign.add_user(first_name="Grace")
    campaign.rank(user, 17)
    campaign.add_template("welcome", text="{{ user_first_name }} is {{ position }}: {{ unsubscribe_url }}")
    printed = command("templates", "preview", "welcome", "--user", campaign.address(user), "--text")
    assert printed.code == 0, printed.err
    assert "Grace is 17: https://example.com/unsubscribe?token=" in printed.out
    directory = files(tmp_path / "mine")
    printed = command("templates", "preview", "welcome", "--user", user, "--files", directory, "--text")
    assert "Hello Grace" in printed.out
    assert connection.execute("SELECT count(*) FROM campaign_jobs.email_messages").fetchone() == (0,)


def test_a_preview_of_a_reward_and_of_a_milestone(command: Command, campaign: MailCampaign) -> None:
    user = campaign.add_user()
    printed = command("templates", "preview", "reward_earned", "--user", user, "--text")
    assert printed.code == 2 and "no reward" in printed.err
    campaign.earn(campaign.add_reward("email"), user)
    assert "Early access" in command("templates", "preview", "reward_earned", "--user", user, "--text").out
    assert (
        "25" in command("templates", "preview", "milestone", "--user", user, "--milestone", 25, "--text").out
    )


def test_a_version_that_is_not_enabled_can_be_looked_at(command: Command, campaign: MailCampaign) -> None:
    draft = campaign.add_template("welcome", enabled=False, text="a draft")
    assert "a draft" in command("templates", "preview", "welcome", "--template", draft, "--text").out
    assert (
        "a draft" not in command("templates", "preview", "welcome", "--campaign", campaign.id, "--text").out
    )
    assert command("templates", "preview", "milestone", "--template", draft, "--text").code == 2
    assert command("templates", "preview", "welcome", "--template", uuid4(), "--text").code == 1
    assert command("templates", "preview", "newsletter", "--text").code == 2


def test_files_are_validated_before_they_are_stored(command: Command, tmp_path: Path) -> None:
    good = files(tmp_path / "good")
    assert command("templates", "validate", "--files", good, "--type", "welcome").code == 0
    broken = files(tmp_path / "broken", html="<p>Hello</p>\n<p>{{ user_name }}</p>")
    printed = command("templates", "validate", "--files", broken, "--type", "welcome", "--output", "json")
    assert printed.code == 1
    (row,) = printed.json
    assert row["works"] is False
    assert row["problem"].startswith(f'template "{broken}", html, line 2: ')
    long = files(tmp_path / "long", html="x" * 100_001)
    assert "100001" in command("templates", "validate", "--files", long, "--type", "welcome").out
    (broken / "body.txt").unlink()
    assert command("templates", "validate", "--files", broken, "--type", "welcome").code == 2


def test_stored_versions_are_validated(command: Command, campaign: MailCampaign) -> None:
    good, broken = (
        campaign.add_template("welcome"),
        campaign.add_template("milestone", enabled=False, subject="{% if %}"),
    )
    assert command("templates", "validate", good).code == 0
    printed = command("templates", "validate", "--output", "json")
    assert printed.code == 1
    assert [row["id"] for row in printed.json if not row["works"]] == [str(broken)]
    assert len(printed.json) == 2 + len(EMAIL_TYPES)


def test_a_test_is_sent_marked_and_recorded_by_nobody(
    command: Command, campaign: MailCampaign, connection: Connection, target: Target, aws: AwsStandIn
) -> None:
    user = campaign.add_user(first_name="Grace")
    asked = command("templates", "send-test", "welcome", "me@example.com", "--user", user)
    assert asked.code == 3 and sent_to(aws, "me@example.com") == []
    printed = command(
        "templates", "send-test", "welcome", "me@example.com", "--user", user, "--yes", "--output", "json"
    )
    assert printed.code == 0, printed.err
    (mail,) = sent_to(aws, "me@example.com")
    assert mail.subject == printed.json["subject"] and mail.subject.startswith("[Test] ")
    assert mail.message_id == printed.json["ses_message_id"]
    assert mail.headers["X-Campaign-Jobs-Test"] == "yes"
    assert "message" not in mail.tags, "nothing that SES reports of it is taken for a mail's"
    assert "List-Unsubscribe" not in mail.headers
    text = (aws.mail_directory / mail.text_file).read_text(encoding="utf-8-sig")
    assert "https://example.com/unsubscribe?token=" in text, "nobody is unsubscribed by a test"
    for table in ("email_messages", "outbox", "send_tokens"):
        assert connection.execute(f"SELECT count(*) FROM campaign_jobs.{table}").fetchone() == (0,)


def test_suppressed_addresses_get_no_test(
    command: Command, connection: Connection, target: Target, aws: AwsStandIn
) -> None:
    connection.execute(
        "INSERT INTO campaign_jobs.email_suppressions (address, reason) VALUES ('ours@example.org', 'complaint')"
    )
    target.client("sesv2").put_suppressed_destination(EmailAddress="theirs@example.org", Reason="BOUNCE")
    for address, why in (
        ("Ours@example.org", "suppressed (complaint)"),
        ("theirs@example.org", "SES's suppression"),
    ):
        printed = command("templates", "send-test", "welcome", address, "--yes")
        assert printed.code == 1 and why in printed.err
        assert sent_to(aws, address) == []


def test_a_refusal_of_ses_is_told(command: Command, target: Target, endpoints: Endpoints) -> None:
    endpoints.set(default_sender="hello@elsewhere.example")
    printed = command("templates", "send-test", "welcome", "me@example.com", "--yes")
    assert printed.code == 1 and "not verified" in printed.err


def test_json_of_a_text_preview_is_stable(command: Command) -> None:
    printed = command("templates", "preview", "welcome", "--text", "--output", "json")
    assert set(json.loads(printed.out)) == {"template", "subject", "text"}

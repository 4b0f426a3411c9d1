"""Which template a mail is made of, and what a broken one costs."""

import uuid
from typing import Any

import pytest

from campaign_jobs.database.connection import Database
from campaign_jobs.email.job import EmailJob
from campaign_jobs.worker.outcomes import Done, Rejected
from tests.integration.email.jobs import job_of, process
from tests.integration.email_campaign import MailCampaign, RecordingSender


def test_the_campaigns_template_comes_before_the_default_and_that_before_the_built_in(
    job: EmailJob, campaign: MailCampaign, sender: RecordingSender
) -> None:
    def subject(**data: Any) -> str:
        assert process(job, campaign.asks("welcome", campaign.add_user(first_name="Ada"), **data)) == [Done()]
        return sender.accepted[-1].content.subject

    built_in = subject()
    campaign.add_template(everywhere=True, subject="Default for {{ user_first_name }}")
    assert subject() == "Default for Ada" != built_in
    campaign.add_template(subject="Off", enabled=False, version=7)
    campaign.add_template("milestone", subject="Another type")
    MailCampaign(campaign.connection).add_template(subject="Another campaign's")
    assert subject() == "Default for Ada"
    campaign.add_template(subject="Own for {{ data.plan }}")
    assert subject(template_data={"plan": "<pro>"}) == "Own for <pro>"
    named = campaign.add_template(subject="Named", enabled=False, version=9)
    assert subject(template_id=str(named)) == "Named"
    everywhere = campaign.add_template(subject="Default, named", everywhere=True, enabled=False, version=9)
    assert subject(template_id=str(everywhere)) == "Default, named"


@pytest.mark.parametrize("german_first", [True, False])
def test_a_template_named_by_one_event_is_not_another_ones(
    job: EmailJob, campaign: MailCampaign, sender: RecordingSender, german_first: bool
) -> None:
    def add_german() -> uuid.UUID:
        return campaign.add_template(subject="Willkommen", locale="de", version=2)

    german = add_german() if german_first else None
    campaign.add_template(subject="Welcome")
    german = german or add_german()
    one, other = campaign.add_user(), campaign.add_user()
    assert (
        process(job, campaign.asks("welcome", one, template_id=str(german)), campaign.asks("welcome", other))
        == [Done()] * 2
    )
    subjects = {mail.recipient: mail.content.subject for mail in sender.accepted}
    assert subjects == {campaign.address(one): "Willkommen", campaign.address(other): "Welcome"}


def test_a_broken_template_is_named_and_disturbs_nobody_else(
    job: EmailJob, campaign: MailCampaign, sender: RecordingSender
) -> None:
    campaign.add_template(version=3, html="<p>\n{{ 1 / 0 }}</p>")
    broken, fine = (
        campaign.asks("welcome", campaign.add_user()),
        campaign.asks("verification", campaign.add_user()),
    )
    rejected, done = process(job, broken, fine)
    assert done == Done()
    assert isinstance(rejected, Rejected)
    assert f"campaign {campaign.id} welcome v3" in rejected.reason
    assert "line 2" in rejected.reason
    assert campaign.mail(broken) is None
    job.give_up([(broken, rejected.reason)])
    assert campaign.mail(broken) == ("failed", rejected.reason)
    # Mended and redriven, it goes: what failed has used up no once-key.
    campaign.connection.execute("UPDATE campaign_jobs.email_templates SET html = '<p>Hello</p>'")
    assert process(job, broken) == [Done()]
    assert len(sender.accepted) == 2


@pytest.mark.parametrize("wrong", ["nobody's", "another campaign's", "another type's"])
def test_a_named_template_must_be_there_for_the_event(
    job: EmailJob, campaign: MailCampaign, wrong: str
) -> None:
    if wrong == "another type's":
        template = campaign.add_template("milestone")
    elif wrong == "another campaign's":
        template = MailCampaign(campaign.connection).add_template()
    else:
        template = uuid.uuid4()
    assert process(job, campaign.asks("welcome", campaign.add_user(), template_id=str(template))) == [
        Rejected(f"template {template} is not a welcome template of this campaign")
    ]


def test_a_verification_needs_a_link_and_the_others_do_not(
    job: EmailJob, database: Database, campaign: MailCampaign, sender: RecordingSender
) -> None:
    campaign.set(public_base_url=None)
    user = campaign.add_user()
    asked, welcome = campaign.asks("verification", user), campaign.asks("welcome", user)
    assert process(job, asked, welcome) == [
        Rejected("the campaign has no public_base_url and DEFAULT_PUBLIC_BASE_URL is not set"),
        Done(),
    ]
    with_default = job_of(database, sender, default_base_url="https://default.example.com")
    assert process(with_default, asked) == [Done()]
    assert "https://default.example.com/verify?token=" in sender.accepted[-1].content.text
    campaign.change_user(user, verification_token=None)
    assert process(with_default, campaign.asks("verification", user)) == [
        Rejected("the user has no verification_token to build the link from")
    ]

"""Mail that is parked, and goes out when it may."""

from campaign_jobs.catalog import MAX_VALUE_BYTES
from campaign_jobs.email import store
from campaign_jobs.email.job import EmailJob
from campaign_jobs.events import EVENT_ADAPTER, as_value
from campaign_jobs.worker.outcomes import Done, Rejected, Skipped
from tests.integration.email.jobs import process
from tests.integration.email_campaign import MailCampaign, RecordingSender


def test_parked_mail_goes_out_under_its_id_when_the_campaign_goes_on(
    job: EmailJob, campaign: MailCampaign, sender: RecordingSender
) -> None:
    campaign.set(status="paused")
    user = campaign.add_user()
    kept = campaign.asks(
        "welcome", user, template_data={"note": "Grüße\n🎉", "share": 0.1, "rank": 7}, priority=3
    )
    gone = campaign.asks("verification", removed := campaign.add_user())
    assert process(job, kept, gone) == [Skipped("parked: the campaign is paused")] * 2
    assert campaign.mail(kept) == ("parked", "the campaign is paused")
    assert store.release_parked(campaign.connection, limit=10) == 0
    campaign.set(status="active")
    campaign.change_user(removed, status="removed")
    assert store.release_parked(campaign.connection, limit=1) == 1
    assert store.release_parked(campaign.connection, limit=10) == 1
    assert store.release_parked(campaign.connection, limit=10) == 0
    assert campaign.statuses() == {"released": 2}
    assert process(job, kept, gone) == [Done(), Skipped("the user is removed")]
    assert campaign.mail(kept) == ("accepted", None)


def test_a_released_event_is_the_one_that_was_parked(job: EmailJob, campaign: MailCampaign) -> None:
    campaign.set(status="paused")
    data = {"note": 'Grüße\n🎉 "\\', "share": 0.1, "rank": 2**53, "big": 1e308}
    kept = campaign.asks("welcome", campaign.add_user(), template_data=data, priority=3)
    process(job, kept)
    campaign.set(status="ended")
    assert store.release_parked(campaign.connection, limit=10) == 1
    row = campaign.connection.execute(
        "SELECT event_id, partition_key, event FROM campaign_jobs.outbox"
    ).fetchone()
    assert row is not None
    assert row[:2] == (kept.event.id, str(kept.event.data.user_id))
    assert EVENT_ADAPTER.validate_python(row[2]) == kept.event


def test_a_parked_event_that_fits_the_contract_no_more_holds_up_no_other(
    job: EmailJob, campaign: MailCampaign
) -> None:
    campaign.set(status="paused")
    old, other = (campaign.asks("welcome", campaign.add_user()) for _ in range(2))
    process(job, old, other)
    campaign.connection.execute(
        'UPDATE campaign_jobs.email_messages SET parked_event = \'{"type": "job.email.farewell"}\' WHERE event_id = %s',
        (old.event.id,),
    )
    campaign.set(status="active")
    assert store.release_parked(campaign.connection, limit=10) == 2


def test_an_event_that_relay_could_not_publish_again_is_not_parked(
    job: EmailJob, campaign: MailCampaign
) -> None:
    campaign.set(status="paused")
    # Within the limit as it came, but not with what has been filled in since.
    texts = {f"text_{number}": "é" * 2_600 for number in range(50)}
    value = as_value(campaign.asks("welcome", campaign.add_user(), template_data=texts).event)
    texts["text_0"] += "x" * (MAX_VALUE_BYTES + 1 - len(value))
    delivery = campaign.asks("welcome", campaign.add_user(), template_data=texts)
    assert len(as_value(delivery.event)) == MAX_VALUE_BYTES + 1
    assert process(job, delivery, campaign.asks("welcome", campaign.add_user())) == [
        Rejected("the event is too large to be parked"),
        Skipped("parked: the campaign is paused"),
    ]

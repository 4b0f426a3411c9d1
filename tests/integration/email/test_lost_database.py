"""A database that is gone, or a row that is locked, after SES has answered: nothing is sent again, nothing waits."""

from collections.abc import Callable, Sequence
from typing import Any
from unittest.mock import ANY

import pytest

from campaign_jobs.database.connection import Connection, Database
from campaign_jobs.email import store
from campaign_jobs.email.job import EmailJob
from campaign_jobs.email.sending import Sending
from campaign_jobs.email.ses import Failed, Mail, Unknown
from campaign_jobs.errors import DatabaseUnavailable
from campaign_jobs.worker.outcomes import Done, Retry
from tests.integration.email.jobs import Holder, job_of, losing_the_connection, process
from tests.integration.email_campaign import MailCampaign, RecordingSender


@pytest.fixture
def cut_off(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Arranges that the connection is lost whenever results number `numbers` are being recorded."""

    def arrange(*numbers: int) -> None:
        record, count = store.record, iter(range(1, 1000))

        def losing(connection: Connection, *arguments: Any, **named: Any) -> Any:
            at_fault = losing_the_connection if next(count) in numbers else record
            return at_fault(connection, *arguments, **named)

        monkeypatch.setattr(store, "record", losing)

    return arrange


@pytest.mark.parametrize("lost", [(2,), (2, 3)], ids=["once", "again while that is made up for"])
def test_what_a_lost_database_did_not_take_is_recorded_when_it_is_back(
    job: EmailJob,
    campaign: MailCampaign,
    sender: RecordingSender,
    cut_off: Callable[..., None],
    lost: Sequence[int],
) -> None:
    deliveries = [campaign.asks("welcome", campaign.add_user()) for _ in range(25)]
    cut_off(*lost)
    for _ in lost:
        with pytest.raises(DatabaseUnavailable):
            process(job, *deliveries)
        assert len(sender.accepted) == 20
        assert campaign.statuses() == {"accepted": 10, "claimed": 15}
    # What SES has taken is known as that, and nothing waits for a claim to run out.
    assert process(job, *deliveries) == [Done()] * 25
    assert set(sender.sent.values()) == {1}
    assert campaign.statuses() == {"accepted": 25}


def test_claims_of_which_nobody_knows_whether_they_were_committed_are_given_back(
    job: EmailJob, campaign: MailCampaign, sender: RecordingSender, monkeypatch: pytest.MonkeyPatch
) -> None:
    deliveries = [campaign.asks("welcome", campaign.add_user()) for _ in range(3)]
    claim = Sending._claim

    def losing_the_answer(sending: Sending, *arguments: Any) -> Any:
        claim(sending, *arguments)
        raise DatabaseUnavailable("the connection was lost while it committed")

    with monkeypatch.context() as patch:
        patch.setattr(Sending, "_claim", losing_the_answer)
        with pytest.raises(DatabaseUnavailable):
            process(job, *deliveries)
    assert campaign.statuses() == {"claimed": 3}
    assert process(job, *deliveries) == [Done()] * 3
    assert len(sender.accepted) == 3


def test_what_was_not_recorded_changes_nothing_of_who_took_over(
    job: EmailJob,
    second_database: Database,
    campaign: MailCampaign,
    sender: RecordingSender,
    cut_off: Callable[..., None],
) -> None:
    delivery = campaign.asks("welcome", campaign.add_user())
    sender.answer = lambda mail: Failed("not now")
    cut_off(1)
    with pytest.raises(DatabaseUnavailable):
        process(job, delivery)
    campaign.let_claims_expire()
    assert process(job_of(second_database, RecordingSender()), delivery) == [Done()]
    assert process(job, delivery) == [Done()]
    assert campaign.mail(delivery) == ("accepted", None)


def test_an_answer_that_a_lock_kept_from_being_recorded_is_recorded_once_the_lock_is_gone(
    impatient: Database, campaign: MailCampaign, sender: RecordingSender, holder: Holder
) -> None:
    job = job_of(impatient, sender)
    told, other = (campaign.asks("welcome", campaign.add_user()) for _ in range(2))
    sender.answer = lambda mail: holder.hold(told)
    assert isinstance(process(job, told)[0], Retry)
    sender.answer = lambda mail: None
    # Still locked, and nobody waits for it.
    assert process(job, other) == [Done()]
    assert campaign.mail(told) == ("claimed", None)
    holder.let_go()
    campaign.let_claims_expire()
    assert process(job, told) == [Done()]
    assert len(sender.accepted) == 2


def test_how_a_claim_ended_is_no_news_of_the_next_one(
    impatient: Database,
    campaign: MailCampaign,
    sender: RecordingSender,
    holder: Holder,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    job = job_of(impatient, sender)
    told, other = (campaign.asks("welcome", campaign.add_user()) for _ in range(2))

    def failing(mail: Mail) -> Failed:
        holder.hold(told)
        return Failed("not now")

    sender.answer = failing
    assert isinstance(process(job, told)[0], Retry)
    load = store.load

    def letting_go(*arguments: Any) -> Any:
        monkeypatch.setattr(store, "load", load)
        holder.let_go()
        campaign.let_claims_expire()
        return load(*arguments)

    monkeypatch.setattr(store, "load", letting_go)
    sender.answer = lambda mail: Unknown("no answer came")
    assert process(job, told) == [Retry("no answer came", ANY)]
    sender.answer = lambda mail: None
    assert process(job, other) == [Done()]
    # Without an answer it may have been sent, so it waits for its claim to run out.
    assert campaign.mail(told) == ("claimed", None)

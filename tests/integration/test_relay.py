"""The relay on PostgreSQL and Apache Kafka: nothing is lost, nothing is published by two at once."""

import json
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from datetime import timedelta
from typing import Any

import pytest
from confluent_kafka import Consumer, TopicPartition
from psycopg.errors import SerializationFailure

from campaign_jobs import outbox
from campaign_jobs.catalog import MAX_VALUE_BYTES, TOPIC_PARTITIONS
from campaign_jobs.database.connection import Connection, Database
from campaign_jobs.email import store
from campaign_jobs.email.job import EmailJob
from campaign_jobs.errors import PublishError
from campaign_jobs.events import EmailJobPayload, Event, as_json, as_value, new_event
from campaign_jobs.producer import JobProducer
from campaign_jobs.relay import job as relay_module
from campaign_jobs.relay.job import Relay, RelayReport, counts
from campaign_jobs.relay.lease import Lease
from campaign_jobs.worker.outcomes import Done, Skipped
from local.kafka import KafkaBroker
from tests.integration.email_campaign import DEFAULT_SENDER, UNSUBSCRIBE_LINKS, MailCampaign, RecordingSender
from tests.integration.reward_campaign import deadline

Messages = Sequence[tuple[str, bytes]]


class RecordingPublisher:
    """Acknowledges all that it is given, but what `refuse` says."""

    def __init__(self) -> None:
        self.values: list[bytes] = []
        self.refuse: Callable[[Messages], Sequence[int] | None] = lambda messages: None
        self.at_once = 0
        self.most_at_once = 0
        self._lock = threading.Lock()

    def submit(self, messages: Messages) -> "Future[None]":
        acknowledged: Future[None] = Future()
        try:
            self._publish(messages)
            acknowledged.set_result(None)
        except PublishError as error:
            acknowledged.set_exception(error)
        return acknowledged

    def _publish(self, messages: Messages) -> None:
        with self._lock:
            self.at_once += 1
            self.most_at_once = max(self.most_at_once, self.at_once)
        try:
            refused = self.refuse(messages)
        finally:
            with self._lock:
                self.at_once -= 1
        missing = range(len(messages)) if refused == () else refused or ()
        self.values += [value for number, (_, value) in enumerate(messages) if number not in missing]
        if refused is not None:
            raise PublishError("Kafka did not take everything", refused)

    @property
    def published(self) -> list[dict[str, Any]]:
        return [json.loads(value) for value in self.values]

    @property
    def ids(self) -> list[str]:
        return [event["id"] for event in self.published]


@pytest.fixture
def publisher() -> RecordingPublisher:
    return RecordingPublisher()


@pytest.fixture
def relay(database: Database, publisher: RecordingPublisher) -> Relay:
    return Relay(database, publisher)


@pytest.fixture
def campaign(connection: Connection) -> MailCampaign:
    return MailCampaign(connection)


@pytest.fixture(autouse=True)
def _quickly(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(relay_module, "LOOK_EVERY_SECONDS", 0.02)


@pytest.fixture
def another_database(database_url: str) -> Iterator[Database]:
    database = Database(database_url)
    yield database
    database.close()


def welcome(number: int = 0, **data: Any) -> Event:
    payload = EmailJobPayload(type="welcome", campaign_id=uuid.UUID(int=1), user_id=uuid.UUID(int=2), **data)
    return new_event(payload, event_id=f"event-{number}")


def unpublished(connection: Connection) -> list[str]:
    rows = connection.execute(
        "SELECT event_id FROM campaign_jobs.outbox WHERE published_at IS NULL ORDER BY id"
    ).fetchall()
    return [row[0] for row in rows]


def read_topic(broker: KafkaBroker, topic: str, count: int) -> list[tuple[str, dict[str, Any]]]:
    consumer = Consumer(
        {"bootstrap.servers": broker.bootstrap_servers, "group.id": "test", "enable.auto.commit": False}
    )
    try:
        consumer.assign([TopicPartition(topic, number, 0) for number in range(TOPIC_PARTITIONS)])
        found: list[tuple[str, dict[str, Any]]] = []
        while len(found) < count:
            message = consumer.poll(30)
            assert message is not None, f"only {len(found)} of {count} records came"
            assert message.error() is None
            key, value = message.key(), message.value()
            assert key is not None
            assert value is not None
            found.append((key.decode(), json.loads(value)))
        return found
    finally:
        consumer.close()


# Publishing.


def test_the_outbox_reaches_kafka_with_ids_and_keys(
    database: Database, connection: Connection, campaign: MailCampaign, kafka_broker: KafkaBroker, topic: str
) -> None:
    user = campaign.add_user()
    sent = [
        new_event(
            EmailJobPayload(
                type="welcome", campaign_id=campaign.id, user_id=user, template_data={"a": "ü\n🎉"}
            )
        ),
        new_event(
            EmailJobPayload(type="milestone", campaign_id=campaign.id, user_id=uuid.uuid4(), milestone=3)
        ),
    ]
    outbox.enqueue(connection, sent)
    with JobProducer(brokers=kafka_broker.bootstrap_servers, topic=topic) as producer:
        report = Relay(database, producer).round()
        assert (report.published, report.rounds) == (2, 1)
        assert unpublished(connection) == []
        assert Relay(database, producer).round().published == 0
    found = dict(read_topic(kafka_broker, topic, 2))
    assert found == {str(event.data.user_id): as_json(event) for event in sent}  # type: ignore[union-attr]


def test_a_crash_between_publishing_and_marking_repeats_under_the_same_id(
    database: Database, connection: Connection, kafka_broker: KafkaBroker, topic: str
) -> None:
    class Crash(BaseException):
        pass

    class Dying:
        def __init__(self, producer: JobProducer) -> None:
            self._producer = producer

        def submit(self, messages: Messages) -> "Future[None]":
            self._producer.publish(messages)
            raise Crash

    outbox.enqueue(connection, [welcome()])
    with JobProducer(brokers=kafka_broker.bootstrap_servers, topic=topic) as producer:
        with pytest.raises(Crash):
            Relay(database, Dying(producer)).round()
        assert unpublished(connection) == ["event-0"]
        assert Relay(database, producer).round().published == 1
    assert [event["id"] for _, event in read_topic(kafka_broker, topic, 2)] == ["event-0"] * 2


@pytest.mark.parametrize(
    ("refused", "left"), [((1, 3), ["event-1", "event-3"]), ((), [f"event-{n}" for n in range(5)])]
)
def test_only_what_kafka_acknowledged_is_marked(
    relay: Relay,
    publisher: RecordingPublisher,
    connection: Connection,
    refused: tuple[int, ...],
    left: list[str],
) -> None:
    outbox.enqueue(connection, [welcome(number) for number in range(5)])
    publisher.refuse = lambda messages: refused
    with pytest.raises(PublishError):
        relay.run(deadline())
    assert unpublished(connection) == left
    publisher.refuse = lambda messages: None
    # The lease was given back, so that the next tick need not wait for its end.
    assert relay.run(deadline(relay_module.UNTIL_DEADLINE_SECONDS - 1)) == RelayReport(
        published=len(left), rounds=1
    )
    assert sorted(publisher.ids) == [f"event-{number}" for number in range(5)]


def test_a_broker_that_acknowledges_nothing_does_not_outlast_the_invocation(
    database: Database,
    another_database: Database,
    publisher: RecordingPublisher,
    connection: Connection,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    acknowledged: Future[None] = Future()
    too_late = threading.Timer(10, acknowledged.set_result, [None])

    class Silent:
        def submit(self, _: Messages) -> "Future[None]":
            too_late.start()
            return acknowledged

    monkeypatch.setattr(relay_module, "ENDING_SECONDS", 2.0)
    outbox.enqueue(connection, [welcome()])
    ending = deadline(3)
    with pytest.raises(PublishError, match="not acknowledged in time"):
        Relay(database, Silent()).run(ending)
    too_late.cancel()
    assert 1 < ending.remaining_seconds() <= 2
    assert unpublished(connection) == ["event-0"]
    # The lease was given back in time as well.
    assert Lease(another_database, "relay").take()
    assert Relay(database, publisher).round().published == 1


def test_a_backlog_goes_out_in_order_and_in_portions(
    relay: Relay, publisher: RecordingPublisher, connection: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(relay_module, "PUBLISH_AT_ONCE", 10)
    portions: list[int] = []
    publisher.refuse = lambda messages: portions.append(len(messages))
    for number in range(25):
        outbox.enqueue(connection, [welcome(number)])
    assert relay.round().published == 25
    assert publisher.ids == [f"event-{number}" for number in range(25)]
    assert portions == [10, 10, 5]


def test_a_long_backlog_does_not_outlast_the_invocation(
    relay: Relay, publisher: RecordingPublisher, connection: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(relay_module, "PUBLISH_AT_ONCE", 1)
    outbox.enqueue(connection, [welcome(number) for number in range(3)])
    assert relay.run(deadline(relay_module.UNTIL_DEADLINE_SECONDS - 1)).published == 1
    assert unpublished(connection) == ["event-1", "event-2"]


def test_an_event_near_the_limit_goes_out_however_jsonb_writes_its_numbers(
    relay: Relay, publisher: RecordingPublisher, connection: Connection
) -> None:
    values: list[bytes] = []
    publisher.refuse = lambda messages: values.extend(value for _, value in messages)
    data: dict[str, str | float] = {f"text_{number}": "é" * 2_650 for number in range(48)}
    data |= {"number": 1e300, "rest": ""}
    data["rest"] = "é" * ((MAX_VALUE_BYTES - len(as_value(welcome(template_data=data)))) // 2)
    outbox.enqueue(connection, [event := welcome(template_data=data)])
    assert relay.round().published == 1
    assert MAX_VALUE_BYTES - 1 <= len(values[0]) <= MAX_VALUE_BYTES
    assert publisher.published == [as_json(event)]


def test_what_only_postgresql_can_read_goes_out_as_it_is_stored(
    relay: Relay, publisher: RecordingPublisher, connection: Connection
) -> None:
    connection.execute(
        "INSERT INTO campaign_jobs.outbox (event_id, partition_key, event) VALUES"
        " ('digits', 'key', jsonb_build_object('number', repeat('9', 4301)::numeric)),"
        " ('nested', 'key', jsonb_build_object('lists', (repeat('[', 3000) || repeat(']', 3000))::jsonb))"
    )
    outbox.enqueue(connection, [welcome()])
    stored = connection.execute("SELECT event::text FROM campaign_jobs.outbox ORDER BY id").fetchall()
    assert relay.round().published == 3
    assert publisher.values == [text.encode() for (text,) in stored]
    assert unpublished(connection) == []


def test_a_portion_of_large_events_fits_into_memory(
    relay: Relay, publisher: RecordingPublisher, connection: Connection
) -> None:
    portions: list[int] = []
    publisher.refuse = lambda messages: portions.append(sum(len(value) for _, value in messages))
    connection.execute(
        "INSERT INTO campaign_jobs.outbox (event_id, partition_key, event)"
        " SELECT number::text, 'key', jsonb_build_object('text', repeat('x', 250000))"
        " FROM generate_series(1, 40) AS number"
    )
    assert relay.round().published == 40
    assert len(portions) == 3
    assert max(portions) <= relay_module.PUBLISH_BYTES_AT_ONCE + MAX_VALUE_BYTES


@pytest.mark.parametrize(
    "more", ["null", "repeat('9', 4301)::numeric", "(repeat('[', 3000) || repeat(']', 3000))::jsonb"]
)
def test_a_row_that_kafka_will_never_take_holds_up_no_other(
    relay: Relay,
    publisher: RecordingPublisher,
    connection: Connection,
    monkeypatch: pytest.MonkeyPatch,
    more: str,
) -> None:
    monkeypatch.setattr(relay_module, "PUBLISH_AT_ONCE", 2)
    connection.execute(
        "INSERT INTO campaign_jobs.outbox (event_id, partition_key, event) VALUES"
        f" ('huge', 'key', jsonb_build_object('text', repeat('x', 300000), 'more', {more}))"
    )
    outbox.enqueue(connection, [welcome(number) for number in range(5)])
    report = relay.run(deadline(relay_module.UNTIL_DEADLINE_SECONDS - 1))
    report = relay.round(relay.round(report))
    assert (report.published, report.refused) == (5, 1)
    row = connection.execute("SELECT refused FROM campaign_jobs.outbox WHERE published_at IS NULL").fetchall()
    assert row == [("the event is longer than the 262144 bytes that a record's value may have",)]


def test_nothing_that_is_not_committed_is_published(
    relay: Relay, publisher: RecordingPublisher, connection: Connection
) -> None:
    with connection.transaction():
        outbox.enqueue(connection, [welcome()])
        assert relay.round().published == 0
    assert relay.round().published == 1
    assert publisher.ids == ["event-0"]


# The lease.


def test_the_newcomer_gets_the_lease_because_the_holder_yields(
    database: Database,
    another_database: Database,
    publisher: RecordingPublisher,
    connection: Connection,
    database_url: str,
) -> None:
    publisher.refuse = lambda messages: time.sleep(0.01)
    numbers = iter(range(1_000_000))

    def start(name: str, database: Database) -> threading.Thread:
        thread = threading.Thread(
            target=lambda: reports.update({name: Relay(database, publisher).run(deadline(1000))})
        )
        thread.start()
        return thread

    def until_it_publishes() -> None:
        event_id = f"event-{(number := next(numbers))}"
        outbox.enqueue(connection, [welcome(number)])
        while event_id not in publisher.ids:
            assert any(thread.is_alive() for thread in threads)
            outbox.enqueue(connection, [welcome(next(numbers))])

    reports: dict[str, RelayReport] = {}
    threads = [start("holder", database)]
    until_it_publishes()
    threads.append(start("newcomer", another_database))
    # The holder would have gone on for a quarter of an hour.
    while threads[0].is_alive():
        outbox.enqueue(connection, [welcome(next(numbers))])
    until_it_publishes()
    third_database = Database(database_url)
    third = Lease(third_database, "relay")
    while not third.take():
        time.sleep(0.01)
    threads[1].join()
    third_database.close()
    assert reports["holder"].published >= 1
    assert reports["newcomer"].published >= 1
    assert publisher.most_at_once == 1
    assert len(publisher.ids) == len(set(publisher.ids))


def test_a_long_backlog_does_not_outlast_the_lease(
    database: Database,
    another_database: Database,
    publisher: RecordingPublisher,
    connection: Connection,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(relay_module, "PUBLISH_AT_ONCE", 1)
    outbox.enqueue(connection, [welcome(number) for number in range(6)])
    others = Lease(another_database, "relay")
    taken: list[bool] = []

    def slow(messages: Messages) -> None:
        # The lease has almost run out when the portion is through; the second one has another at the door.
        connection.execute(
            "UPDATE campaign_jobs.leases SET expires_at = clock_timestamp() + interval '100 ms'"
        )
        if len(publisher.published) == 3:
            taken.append(others.take())

    publisher.refuse = slow
    report = Relay(database, publisher).run(deadline())
    assert taken == [False]
    # It renewed between the portions, and left in the middle of the backlog for the one who waits.
    assert report.published == 4
    assert others.take()
    assert unpublished(connection) == ["event-4", "event-5"]


def test_a_relay_that_lost_its_lease_stops_publishing(
    database: Database, publisher: RecordingPublisher, connection: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(relay_module, "PUBLISH_AT_ONCE", 1)
    outbox.enqueue(connection, [welcome(number) for number in range(3)])

    def frozen(messages: Messages) -> None:
        connection.execute("UPDATE campaign_jobs.leases SET owner = gen_random_uuid()")

    publisher.refuse = frozen
    assert Relay(database, publisher).run(deadline()).published == 1
    # And it leaves the new owner's lease alone.
    assert connection.execute("SELECT expires_at > now() FROM campaign_jobs.leases").fetchone() == (True,)


def test_a_dead_holders_lease_runs_out(
    database: Database, another_database: Database, publisher: RecordingPublisher, connection: Connection
) -> None:
    dead = Lease(another_database, "relay")
    assert dead.take()
    report = Relay(database, publisher).run(deadline(relay_module.UNTIL_DEADLINE_SECONDS - 1))
    assert report == RelayReport()
    connection.execute("UPDATE campaign_jobs.leases SET expires_at = clock_timestamp() - interval '1 ms'")
    report = Relay(database, publisher).run(deadline(relay_module.UNTIL_DEADLINE_SECONDS - 1))
    assert report.rounds == 1
    assert not dead.renew()


def test_a_lease_is_held_for_seconds_and_renewed_only_by_its_owner(
    database: Database, another_database: Database, connection: Connection
) -> None:
    mine, other = Lease(database, "relay"), Lease(another_database, "relay")
    assert mine.take()
    row = connection.execute("SELECT expires_at - clock_timestamp() FROM campaign_jobs.leases").fetchone()
    assert row is not None
    assert timedelta(seconds=1) < row[0] <= timedelta(seconds=5)
    assert mine.renew()
    assert not other.renew()
    assert Lease(another_database, "something else").take()
    assert not other.take()
    assert not mine.renew(), "somebody waits"
    # A waiting one that died is forgotten.
    connection.execute("UPDATE campaign_jobs.leases SET waiting_until = clock_timestamp() - interval '1 ms'")
    assert mine.renew()
    connection.execute("UPDATE campaign_jobs.leases SET expires_at = clock_timestamp() - interval '1 ms'")
    assert not mine.renew(), "a lease that ran out is lost, even where nobody has it yet"
    other.give_back()
    assert other.take()
    mine.give_back()
    assert other.renew()


# What waits in rows.


def test_parked_mail_comes_back_under_its_id_even_twice(
    relay: Relay, publisher: RecordingPublisher, database: Database, campaign: MailCampaign
) -> None:
    sender = RecordingSender()
    mails = EmailJob(
        database, sender, pool_size=2, default_sender=DEFAULT_SENDER, unsubscribe_links=UNSUBSCRIBE_LINKS
    )
    delivery = campaign.asks("welcome", campaign.add_user(), template_data={"note": "ü"})
    for expected in (1, 2):
        campaign.set(status="paused")
        assert isinstance(mails.process([delivery], deadline())[0], Skipped)
        assert relay.round() == RelayReport(rounds=1)
        campaign.set(status="active")
        assert relay.round() == RelayReport(rounds=1, parked_mails_released=1, published=1)
        assert publisher.published == [as_json(delivery.event)] * expected
        assert campaign.mail(delivery, "status") == ("released",)
    assert mails.process([delivery], deadline()) == [Done()]
    assert len(sender.accepted) == 1


def test_parked_webhooks_come_back_when_their_endpoint_is_enabled(
    relay: Relay, publisher: RecordingPublisher, campaign: MailCampaign
) -> None:
    endpoint = campaign.add_endpoint("https://hooks.example.com/")
    user_reward = campaign.earn(campaign.add_reward("webhook", endpoint))
    campaign.connection.execute(
        "UPDATE campaign_jobs.user_rewards SET parked_event_id = 'parked', parked_at = now() WHERE id = %s",
        (user_reward,),
    )
    campaign.connection.execute("UPDATE campaign_jobs.webhook_endpoints SET status = 'disabled'")
    assert relay.round() == RelayReport(rounds=1)
    campaign.connection.execute("UPDATE campaign_jobs.webhook_endpoints SET status = 'enabled'")
    assert relay.round() == RelayReport(rounds=1, parked_webhooks_released=1, published=1)
    assert publisher.ids == ["parked"]
    assert campaign.row(user_reward, "parked_event_id, parked_at") == (None, None)


def test_a_reward_that_nobody_delivers_any_more_failed(
    relay: Relay, campaign: MailCampaign, monkeypatch: pytest.MonkeyPatch
) -> None:
    user_reward = campaign.earn(campaign.add_reward("email"))
    campaign.connection.execute(
        "UPDATE campaign_jobs.user_rewards SET status = 'delivering', mail_asked_at = now() - interval '23 days'"
    )
    assert relay.round() == RelayReport(rounds=1, forgotten_rewards_failed=1)
    assert campaign.row(user_reward) == ("failed",)
    campaign.connection.execute("UPDATE campaign_jobs.user_rewards SET status = 'delivering'")
    assert relay.round() == RelayReport(rounds=1), "it has just looked"
    monkeypatch.setattr(relay_module, "FORGET_EVERY_SECONDS", 0)
    assert relay.round() == RelayReport(rounds=1, forgotten_rewards_failed=1)


def test_held_rewards_come_back_when_nothing_holds_them(
    relay: Relay, publisher: RecordingPublisher, campaign: MailCampaign
) -> None:
    user_reward = campaign.earn(campaign.add_reward("email"))
    case = campaign.open_case(user_reward)
    campaign.connection.execute("UPDATE campaign_jobs.user_rewards SET held_at = now()")
    assert relay.round() == RelayReport(rounds=1)
    campaign.dismiss(case)
    report = relay.round()
    assert (report.held_rewards_released, report.published) == (1, 1)
    assert publisher.published[0]["data"] == {"user_reward_id": str(user_reward)}
    assert relay.round().held_rewards_released == 0


def test_position_requests_that_nobody_runs_for_are_asked_for_again_once_a_minute(
    relay: Relay, publisher: RecordingPublisher, campaign: MailCampaign, monkeypatch: pytest.MonkeyPatch
) -> None:
    campaign.connection.execute(
        "INSERT INTO campaign_jobs.position_requests (campaign_id, created_at)"
        " VALUES (%s, now() - interval '10 seconds')",
        (campaign.id,),
    )
    campaign.connection.execute(
        "INSERT INTO campaign_jobs.position_runs (campaign_id) VALUES (%s) ON CONFLICT DO NOTHING",
        (campaign.id,),
    )
    assert relay.round().positions_requested == 0, "its runner may be on the way"
    campaign.connection.execute(
        "UPDATE campaign_jobs.position_requests SET created_at = created_at - interval '10 seconds'"
    )
    assert relay.round().positions_requested == 0, "it has just looked"
    monkeypatch.setattr(relay_module, "POSITIONS_EVERY_SECONDS", 0)
    assert relay.round().positions_requested == 1
    assert relay.round().positions_requested == 0, "a minute must pass"
    (event,) = publisher.published
    assert (event["type"], event["data"]["campaign_id"]) == ("job.position.recalculate", str(campaign.id))


def test_what_a_conflict_rolled_back_is_done_when_the_round_is_repeated(
    relay: Relay, campaign: MailCampaign, monkeypatch: pytest.MonkeyPatch
) -> None:
    forget, conflicts = relay_module.forget_left_behind, [SerializationFailure("on purpose")]

    def conflicting(connection: Connection) -> int:
        if conflicts:
            raise conflicts.pop()
        return forget(connection)

    monkeypatch.setattr(relay_module, "forget_left_behind", conflicting)
    campaign.connection.execute(
        "INSERT INTO campaign_jobs.position_requests (campaign_id, created_at)"
        " VALUES (%s, now() - interval '1 minute')",
        (campaign.id,),
    )
    campaign.connection.execute(
        "INSERT INTO campaign_jobs.user_rewards (id, campaign_id, user_id, reward_id, status, mail_asked_at)"
        " SELECT gen_random_uuid(), %s, %s, %s, 'delivering', now() - interval '23 days'",
        (campaign.id, campaign.add_user(), campaign.add_reward("email")),
    )
    report = relay.round()
    assert (report.positions_requested, report.forgotten_rewards_failed) == (1, 1)


def test_what_cannot_come_back_does_not_keep_the_outbox_waiting(
    relay: Relay, publisher: RecordingPublisher, connection: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*arguments: Any, **named: Any) -> Any:
        raise ZeroDivisionError

    monkeypatch.setattr(relay_module, "release_unheld", broken)
    outbox.enqueue(connection, [welcome()])
    with pytest.raises(ZeroDivisionError):
        relay.run(deadline())
    assert publisher.ids == ["event-0"]


def test_a_report_adds_up_over_the_rounds(
    relay: Relay, publisher: RecordingPublisher, connection: Connection
) -> None:
    outbox.enqueue(connection, [welcome(1), welcome(2)])
    report = relay.round(relay.round())
    assert report == RelayReport(published=2, rounds=2)
    assert counts(report)["records"] == 2.0
    assert counts(report)["rounds"] == 2.0


def test_many_parked_mails_take_several_rounds(
    relay: Relay,
    publisher: RecordingPublisher,
    database: Database,
    campaign: MailCampaign,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(relay_module, "PUBLISH_AT_ONCE", 3)
    deliveries = [campaign.asks("milestone", campaign.add_user(), milestone=1) for _ in range(5)]
    with database.transaction() as own:
        store.set_aside(own, [store.SetAside(delivery.event, "parked", "paused") for delivery in deliveries])
    assert [relay.round().parked_mails_released for _ in range(3)] == [3, 2, 0]
    assert sorted(publisher.ids) == sorted(delivery.event.id for delivery in deliveries)

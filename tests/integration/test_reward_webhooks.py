"""Rewards by webhook, over a real database to a real HTTPS receiver."""

import json
import threading
import uuid
from collections.abc import Iterator, Mapping, Sequence
from datetime import timedelta
from typing import Any

import psycopg
import pytest
from standardwebhooks import Webhook

from campaign_jobs.database.connection import Connection, Database
from campaign_jobs.errors import DatabaseUnavailable
from campaign_jobs.reward.decisions import FAILURES_TO_DISABLE
from campaign_jobs.reward.job import RewardJob
from campaign_jobs.reward.settlement import release_parked
from campaign_jobs.reward.webhooks.client import Answer, HttpsWebhookClient, WebhookClient
from campaign_jobs.worker.outcomes import Done, Later, Rejected, Retry, Skipped
from local.certificates import Certificates, make_certificates
from tests.integration.reward_campaign import PREVIOUS_SECRET, SECRET, Campaign, deadline, delivery_of
from tests.integration.webhook_receiver import HOST, NAMES, Receiver, receiving, status


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    return make_certificates(tmp_path_factory.mktemp("certificates"), NAMES)


@pytest.fixture
def receiver(certificates: Certificates) -> Iterator[Receiver]:
    with receiving(certificates) as receiver:
        yield receiver


@pytest.fixture
def client(receiver: Receiver, certificates: Certificates) -> HttpsWebhookClient:
    def resolver(host: str, port: int, *, timeout_seconds: float) -> Sequence[str]:
        return ["127.0.0.1"]

    return HttpsWebhookClient(
        test_targets=frozenset({(HOST, receiver.port)}), test_ca_file=certificates.ca_file, resolver=resolver
    )


@pytest.fixture
def job(database: Database, client: HttpsWebhookClient) -> RewardJob:
    return RewardJob(database, client, pool_size=4)


@pytest.fixture
def campaign(connection: Connection) -> Campaign:
    return Campaign(connection)


@pytest.fixture
def endpoint(campaign: Campaign, receiver: Receiver) -> uuid.UUID:
    return campaign.add_endpoint(receiver.url())


@pytest.fixture
def user_reward(campaign: Campaign, endpoint: uuid.UUID) -> uuid.UUID:
    return campaign.earn(campaign.add_reward("webhook", endpoint))


def attempts(campaign: Campaign) -> list[tuple[Any, ...]]:
    return campaign.connection.execute(
        "SELECT user_reward_id, event_id, status_code, error FROM campaign_jobs.webhook_attempts ORDER BY id"
    ).fetchall()


def test_a_2xx_delivers_and_the_receiver_can_verify_what_it_got(
    job: RewardJob, campaign: Campaign, receiver: Receiver, user_reward: uuid.UUID
) -> None:
    receiver.answer(status(204))
    assert job.process([delivery_of(user_reward, event_id="e1")], deadline()) == [Done()]
    assert campaign.row(user_reward, "status, attempts, last_error, claim_token") == (
        "delivered",
        1,
        None,
        None,
    )
    (request,) = receiver.requests
    message = Webhook(SECRET).verify(request.body, request.headers)
    user_id, reward_id = campaign.row(user_reward, "user_id, reward_id")
    assert message.pop("timestamp").endswith("Z")
    assert message == {
        "type": "reward.earned",
        "data": {
            "user_reward_id": str(user_reward),
            "campaign_id": str(campaign.id),
            "occurrence": 1,
            "expires_at": None,
            "reward": {"id": str(reward_id), "name": "Early access", "type": "early_access"},
            "user": {"id": str(user_id), "email": "person1@example.org"},
            "data": {"code": "LAUNCH-1"},
        },
    }
    assert attempts(campaign) == [(user_reward, "e1", 204, None)]
    # A redelivery, or another event for the same reward, is a no-op.
    assert job.process([delivery_of(user_reward)], deadline()) == [Skipped("the user reward is delivered")]
    assert len(receiver.requests) == 1


def test_a_failure_is_retried_under_the_same_id_with_a_new_timestamp(
    job: RewardJob, campaign: Campaign, receiver: Receiver, user_reward: uuid.UUID, endpoint: uuid.UUID
) -> None:
    receiver.answer(status(500), status(200))
    (outcome,) = job.process([delivery_of(user_reward)], deadline())
    assert isinstance(outcome, Retry) and outcome.reason == "the endpoint answered 500"
    assert outcome.after is not None and timedelta(seconds=5) <= outcome.after <= timedelta(seconds=6)
    assert campaign.row(user_reward, "status, attempts, last_error") == (
        "earned",
        1,
        "the endpoint answered 500",
    )
    assert campaign.endpoint(endpoint, "consecutive_failures, failing_since IS NOT NULL") == (1, True)
    campaign.rested()
    assert job.process([delivery_of(user_reward, attempts_spent=1)], deadline()) == [Done()]
    assert campaign.row(user_reward, "status, attempts, last_error") == ("delivered", 2, None)
    assert campaign.endpoint(endpoint, "consecutive_failures, failing_since, rests_until") == (0, None, None)
    first, second = receiver.requests
    assert first.headers["webhook-id"] == second.headers["webhook-id"]
    assert first.body == second.body
    assert [row[2] for row in attempts(campaign)] == [500, 200]


def test_retry_after_is_honored(
    job: RewardJob, campaign: Campaign, receiver: Receiver, user_reward: uuid.UUID, endpoint: uuid.UUID
) -> None:
    receiver.answer(status(429, Retry_After="90000"))
    assert job.process([delivery_of(user_reward, attempts_spent=2)], deadline()) == [
        Retry("the endpoint answered 429", timedelta(hours=24))
    ]
    assert timedelta(hours=23) < rest_of(campaign, endpoint) <= timedelta(hours=24)


def rest_of(campaign: Campaign, endpoint: uuid.UUID) -> timedelta:
    (left,) = campaign.endpoint(endpoint, "rests_until - now()")
    assert isinstance(left, timedelta)
    return left


def test_an_endpoint_that_failed_is_left_alone_for_a_while_and_others_are_not(
    job: RewardJob, campaign: Campaign, receiver: Receiver, user_reward: uuid.UUID, endpoint: uuid.UUID
) -> None:
    receiver.answer(status(503), status(200))
    assert isinstance(job.process([delivery_of(user_reward)], deadline())[0], Retry)
    other, healthy = (
        campaign.earn(campaign.add_reward("webhook", to))
        for to in (endpoint, campaign.add_endpoint(receiver.url(path="/healthy")))
    )
    waits, done = job.process([delivery_of(other), delivery_of(healthy)], deadline())
    assert isinstance(waits, Later) and timedelta(seconds=4) < waits.after <= timedelta(seconds=10)
    assert done == Done()
    assert [request.path for request in receiver.requests[1:]] == ["/healthy"]
    assert campaign.row(other, "status, attempts, claim_token") == ("earned", 0, None)
    campaign.rested()
    assert job.process([delivery_of(other)], deadline()) == [Done()]
    assert campaign.endpoint(endpoint, "rests_until") == (None,)


@pytest.mark.parametrize(
    ("failing_for", "rests_for"), [("10 seconds", 5), ("10 minutes", 300), ("23 hours", 3600)]
)
def test_a_rest_grows_with_the_time_of_failing(
    job: RewardJob,
    campaign: Campaign,
    receiver: Receiver,
    endpoint: uuid.UUID,
    user_reward: uuid.UUID,
    failing_for: str,
    rests_for: int,
) -> None:
    campaign.connection.execute(
        "UPDATE campaign_jobs.webhook_endpoints SET consecutive_failures = 1, failing_since = now() - %s::interval",
        (failing_for,),
    )
    receiver.answer(status(503))
    job.process([delivery_of(user_reward)], deadline())
    assert rests_for - 4 < rest_of(campaign, endpoint).total_seconds() < rests_for + 10


def test_a_rest_is_not_cut_short_by_another_failure(
    job: RewardJob,
    client: HttpsWebhookClient,
    other_database: Database,
    campaign: Campaign,
    receiver: Receiver,
) -> None:
    endpoint = campaign.add_endpoint(receiver.url())
    reward = campaign.add_reward("webhook", endpoint)
    receiver.answer(status(429, Retry_After="3600"), status(500))
    slow = Paused(client)
    first, second = delivery_of(campaign.earn(reward)), delivery_of(campaign.earn(reward))
    thread = threading.Thread(
        target=lambda: RewardJob(other_database, slow, pool_size=1).process([second], deadline())
    )
    thread.start()
    assert slow.reached.wait(20)
    job.process([first], deadline())
    slow.go_on.set()
    thread.join()
    assert [row[2] for row in attempts(campaign)] == [429, 500]
    assert rest_of(campaign, endpoint) > timedelta(minutes=50)


def test_an_endpoint_that_failed_in_a_pool_full_gets_no_more_of_the_batch(
    database: Database, client: HttpsWebhookClient, campaign: Campaign, receiver: Receiver
) -> None:
    def answer(handler: Any) -> None:
        status(503 if handler.path == "/fails" else 200)(handler)

    receiver.answer(answer)
    rewards = [
        campaign.add_reward("webhook", campaign.add_endpoint(receiver.url(path=path)))
        for path in ("/fails", "/works")
    ]
    failing, working = ([campaign.earn(reward) for _ in range(6)] for reward in rewards)
    job = RewardJob(database, client, pool_size=2)
    outcomes = job.process([delivery_of(id_) for id_ in (*failing, *working)], deadline())
    assert outcomes[6:] == [Done()] * 6
    tried, spared = campaign.connection.execute(
        "SELECT count(*) FILTER (WHERE attempts = 1), count(*) FILTER (WHERE attempts = 0 AND claim_token IS NULL)"
        " FROM campaign_jobs.user_rewards WHERE status = 'earned'"
    ).fetchone() or (0, 0)
    assert (tried, spared) == (2, 4)
    assert [type(outcome) for outcome in outcomes[:6]].count(Retry) == 2
    assert [type(outcome) for outcome in outcomes[:6]].count(Later) == 4
    assert [request.path for request in receiver.requests].count("/fails") == 2


def test_a_redirect_is_a_failure(job: RewardJob, receiver: Receiver, user_reward: uuid.UUID) -> None:
    receiver.answer(status(302, Location=receiver.url(path="/other")))
    (outcome,) = job.process([delivery_of(user_reward)], deadline())
    assert isinstance(outcome, Retry) and outcome.reason == "the endpoint answered 302"
    assert len(receiver.requests) == 1


def test_an_unsafe_target_is_rejected_and_given_up(
    job: RewardJob, campaign: Campaign, receiver: Receiver
) -> None:
    inner = campaign.add_endpoint(receiver.url(host="inner.example.com"))
    user_reward = campaign.earn(campaign.add_reward("webhook", inner))
    delivery = delivery_of(user_reward)
    (outcome,) = job.process([delivery], deadline())
    assert isinstance(outcome, Rejected) and "not public" in outcome.reason
    job.give_up([(delivery, outcome.reason)])
    assert campaign.row(user_reward, "status, last_error") == ("failed", outcome.reason)
    assert receiver.requests == []
    # A redrive leaves `failed`.
    campaign.connection.execute("UPDATE campaign_jobs.webhook_endpoints SET url = %s", (receiver.url(),))
    assert job.process([delivery], deadline()) == [Done()]


def test_both_secrets_sign_until_the_previous_one_ends(
    job: RewardJob, campaign: Campaign, receiver: Receiver, endpoint: uuid.UUID
) -> None:
    reward = campaign.add_reward("webhook", endpoint)
    for offset in ("1 hour", "-1 second"):
        campaign.connection.execute(
            "UPDATE campaign_jobs.webhook_endpoints"
            " SET previous_secret = %s, previous_secret_until = now() + %s::interval",
            (PREVIOUS_SECRET, offset),
        )
        assert job.process([delivery_of(campaign.earn(reward))], deadline()) == [Done()]
    during, after = receiver.requests
    Webhook(SECRET).verify(during.body, during.headers)
    Webhook(PREVIOUS_SECRET).verify(during.body, during.headers)
    Webhook(SECRET).verify(after.body, after.headers)
    assert len(after.headers["webhook-signature"].split()) == 1


def test_410_disables_the_endpoint_parks_and_enabling_emits_again(
    job: RewardJob, database: Database, campaign: Campaign, receiver: Receiver, endpoint: uuid.UUID
) -> None:
    reward = campaign.add_reward("webhook", endpoint)
    first, second = campaign.earn(reward), campaign.earn(reward)
    receiver.answer(status(410), status(200))
    (outcome,) = job.process([delivery_of(first, event_id="e1")], deadline())
    assert isinstance(outcome, Skipped) and outcome.reason.startswith("parked:")
    assert campaign.endpoint(endpoint, "status, disabled_reason") == ("disabled", "it answered 410 Gone")
    assert job.process([delivery_of(second, event_id="e2")], deadline()) == [
        Skipped("parked: it answered 410 Gone")
    ]
    assert [campaign.row(id_, "status, parked_event_id") for id_ in (first, second)] == [
        ("earned", "e1"),
        ("earned", "e2"),
    ]
    assert len(receiver.requests) == 1
    with database.transaction() as connection:
        assert release_parked(connection) == 0
    campaign.connection.execute("UPDATE campaign_jobs.webhook_endpoints SET status = 'enabled'")
    assert campaign.endpoint(
        endpoint, "consecutive_failures, failing_since, rests_until, disabled_reason"
    ) == (0, None, None, None)
    with database.transaction() as connection:
        assert release_parked(connection) == 2
        assert release_parked(connection) == 0
    assert {(event["id"], event["data"]["user_reward_id"]) for event in campaign.emitted()} == {
        ("e1", str(first)),
        ("e2", str(second)),
    }
    assert job.process(
        [delivery_of(first, event_id="e1"), delivery_of(second, event_id="e2")], deadline()
    ) == [
        Done(),
        Done(),
    ]


def test_parked_twice_is_emitted_twice(
    job: RewardJob, database: Database, campaign: Campaign, endpoint: uuid.UUID
) -> None:
    """The outbox has had the event before, so it must be published again rather than left alone."""
    user_reward = campaign.earn(campaign.add_reward("webhook", endpoint))
    for _ in range(2):
        campaign.connection.execute("UPDATE campaign_jobs.webhook_endpoints SET status = 'disabled'")
        (outcome,) = job.process([delivery_of(user_reward, event_id="e1")], deadline())
        assert isinstance(outcome, Skipped)
        campaign.connection.execute("UPDATE campaign_jobs.webhook_endpoints SET status = 'enabled'")
        with database.transaction() as connection:
            assert release_parked(connection) == 1
        assert [event["id"] for event in campaign.emitted()] == ["e1"]
        campaign.publish_all()


@pytest.mark.parametrize(
    ("failures", "hours", "disabled"),
    [
        (FAILURES_TO_DISABLE - 1, 25, True),
        (FAILURES_TO_DISABLE - 2, 25, False),
        (FAILURES_TO_DISABLE - 1, 23, False),
    ],
)
def test_an_endpoint_that_keeps_failing_is_disabled_and_its_delivery_parked(
    job: RewardJob,
    campaign: Campaign,
    receiver: Receiver,
    endpoint: uuid.UUID,
    user_reward: uuid.UUID,
    failures: int,
    hours: int,
    disabled: bool,
) -> None:
    receiver.answer(status(503))
    campaign.connection.execute(
        "UPDATE campaign_jobs.webhook_endpoints"
        " SET consecutive_failures = %s, failing_since = now() - make_interval(hours => %s)",
        (failures, hours),
    )
    (outcome,) = job.process([delivery_of(user_reward)], deadline())
    assert campaign.endpoint(endpoint) == ("disabled" if disabled else "enabled",)
    assert isinstance(outcome, Skipped if disabled else Retry)
    assert campaign.row(user_reward, "parked_at IS NOT NULL") == (disabled,)


class Paused:
    """Stops in the midst of the first post until it is told to go on."""

    total_seconds = 15.0

    def __init__(self, client: WebhookClient) -> None:
        self._client = client
        self.reached = threading.Event()
        self.go_on = threading.Event()

    def post(self, url: str, body: bytes, headers: Mapping[str, str]) -> Answer:
        self.reached.set()
        assert self.go_on.wait(20)
        return self._client.post(url, body, headers)


@pytest.fixture
def other_database(database_url: str) -> Iterator[Database]:
    database = Database(database_url)
    yield database
    database.close()


def test_concurrent_deliveries_of_one_reward_send_once(
    job: RewardJob,
    client: HttpsWebhookClient,
    other_database: Database,
    receiver: Receiver,
    user_reward: uuid.UUID,
) -> None:
    paused = Paused(client)
    outcomes: list[object] = []
    thread = threading.Thread(
        target=lambda: outcomes.extend(
            RewardJob(other_database, paused, pool_size=2).process([delivery_of(user_reward)], deadline())
        )
    )
    thread.start()
    assert paused.reached.wait(20)
    (meanwhile,) = job.process([delivery_of(user_reward)], deadline())
    assert isinstance(meanwhile, Later) and timedelta(seconds=90) < meanwhile.after < timedelta(seconds=115)
    paused.go_on.set()
    thread.join()
    assert outcomes == [Done()]
    assert len(receiver.requests) == 1


def test_many_racing_for_one_reward_send_once(
    database_url: str, client: HttpsWebhookClient, receiver: Receiver, user_reward: uuid.UUID
) -> None:
    start = threading.Barrier(6)
    outcomes: list[object] = []

    def race() -> None:
        database = Database(database_url)
        start.wait()
        outcomes.extend(
            RewardJob(database, client, pool_size=1).process([delivery_of(user_reward)], deadline())
        )
        database.close()

    threads = [threading.Thread(target=race) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert outcomes.count(Done()) == 1 and len(outcomes) == 6
    assert len(receiver.requests) == 1


class CrashBeforeRecording(Database):
    """Loses its connection at the third transaction, after load and claim, when the webhook has gone."""

    transactions = 0

    def transaction(self, isolation: Any = None) -> Any:
        self.transactions += 1
        if self.transactions == 3:
            raise DatabaseUnavailable("the connection to PostgreSQL was lost")
        return super().transaction(isolation)


def test_a_crash_after_a_2xx_repeats_the_same_webhook_id(
    job: RewardJob,
    client: HttpsWebhookClient,
    database_url: str,
    campaign: Campaign,
    receiver: Receiver,
    user_reward: uuid.UUID,
) -> None:
    crashing = CrashBeforeRecording(database_url)
    with pytest.raises(DatabaseUnavailable):
        RewardJob(crashing, client, pool_size=2).process([delivery_of(user_reward)], deadline())
    crashing.close()
    assert campaign.row(user_reward) == ("delivering",)
    (waiting,) = job.process([delivery_of(user_reward)], deadline())
    assert isinstance(waiting, Later)
    campaign.connection.execute("UPDATE campaign_jobs.user_rewards SET claimed_until = now()")
    assert job.process([delivery_of(user_reward)], deadline()) == [Done()]
    first, second = receiver.requests
    assert first.headers["webhook-id"] == second.headers["webhook-id"]


def test_who_lost_the_claim_records_nothing(
    client: HttpsWebhookClient,
    database: Database,
    other_database: Database,
    campaign: Campaign,
    receiver: Receiver,
    user_reward: uuid.UUID,
) -> None:
    receiver.answer(status(500), status(200))
    paused = Paused(client)
    outcomes: list[object] = []
    slow = threading.Thread(
        target=lambda: outcomes.extend(
            RewardJob(other_database, paused, pool_size=1).process([delivery_of(user_reward)], deadline())
        )
    )
    slow.start()
    assert paused.reached.wait(20)
    campaign.connection.execute("UPDATE campaign_jobs.user_rewards SET claimed_until = now()")
    taking_over = Paused(client)
    fast = threading.Thread(
        target=lambda: RewardJob(database, taking_over, pool_size=1).process(
            [delivery_of(user_reward)], deadline()
        )
    )
    fast.start()
    assert taking_over.reached.wait(20)
    paused.go_on.set()
    slow.join()
    assert campaign.row(user_reward, "status, attempts") == ("delivering", 0)
    taking_over.go_on.set()
    fast.join()
    assert isinstance(outcomes[0], Later)
    assert campaign.row(user_reward, "status, attempts") == ("delivered", 1)


@pytest.mark.parametrize("status_meanwhile", ["redeemed", "revoked"])
def test_a_service_may_settle_a_reward_while_its_webhook_is_on_the_way(
    job: RewardJob,
    campaign: Campaign,
    receiver: Receiver,
    database_url: str,
    user_reward: uuid.UUID,
    status_meanwhile: str,
) -> None:
    def answer(handler: Any) -> None:
        with psycopg.connect(database_url, autocommit=True) as connection:
            connection.execute("UPDATE campaign_jobs.user_rewards SET status = %s", (status_meanwhile,))
        status(200)(handler)

    receiver.answer(answer)
    assert job.process([delivery_of(user_reward)], deadline()) == [Done()]
    assert campaign.row(user_reward, "status, delivered_at IS NOT NULL, claim_token") == (
        status_meanwhile,
        True,
        None,
    )


def test_without_time_left_nothing_is_started_and_claims_are_released(
    client: HttpsWebhookClient,
    database: Database,
    campaign: Campaign,
    receiver: Receiver,
    endpoint: uuid.UUID,
) -> None:
    reward = campaign.add_reward("webhook", endpoint)
    rewards = [campaign.earn(reward) for _ in range(3)]
    job = RewardJob(database, client, pool_size=1)
    outcomes = job.process([delivery_of(id_) for id_ in rewards], deadline(5))
    assert all(isinstance(outcome, Later) for outcome in outcomes)
    assert receiver.requests == []

    class Expiring(type(deadline())):  # type: ignore[misc]
        """Has time for one webhook."""

        def remaining_seconds(self) -> float:
            return 5.0 if receiver.requests else 100.0

    outcomes = job.process([delivery_of(id_) for id_ in rewards], Expiring(0.0))
    assert outcomes.count(Done()) == 1 and sum(isinstance(outcome, Later) for outcome in outcomes) == 2
    assert len(receiver.requests) == 1
    left = [campaign.row(id_, "status, claim_token, attempts") for id_ in rewards]
    assert sorted(left, key=str) == [("delivered", None, 1), ("earned", None, 0), ("earned", None, 0)]


def test_one_batch_mixes_fates_and_each_gets_its_own_outcome(
    job: RewardJob, campaign: Campaign, receiver: Receiver, endpoint: uuid.UUID
) -> None:
    by_webhook, manual = campaign.add_reward("webhook", endpoint), campaign.add_reward("manual")
    delivered, waits, again = campaign.earn(by_webhook), campaign.earn(manual), campaign.earn(by_webhook)
    deliveries = [delivery_of(id_) for id_ in (delivered, waits, uuid.uuid4(), again, again)]
    outcomes = job.process(deliveries, deadline())
    assert outcomes[:2] == [Done(), Skipped("manual delivery waits for an operator")]
    assert isinstance(outcomes[2], Later)
    assert outcomes[3] == Done() and isinstance(outcomes[4], Later)
    assert len(receiver.requests) == 2
    assert json.loads(receiver.requests[0].body)["type"] == "reward.earned"

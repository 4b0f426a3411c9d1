"""A connection to Kafka for publishing: librdkafka's idempotent producer, and the thread that hears its reports."""

import ctypes
import re
import threading
import time
import weakref
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from typing import Any, Final

from confluent_kafka import KafkaError, KafkaException, Producer

from campaign_jobs import catalog
from campaign_jobs.errors import (
    BrokersUnreachable,
    NotAuthorized,
    PublishError,
    SettingsError,
    UnknownTopic,
    ValueTooLarge,
)
from campaign_jobs.settings import KafkaSettings

_LISTEN_SECONDS: Final = 0.25
_FULL_QUEUE_PAUSE_SECONDS: Final = 0.01
_LOOK_AGAIN_SECONDS: Final = 2.0
_BY_KEY: Final = -1
"""In the place of a partition: Kafka's client chooses it."""
_NOW: Final = 0
"""In the place of a record's time: Kafka's client takes the present."""

_ERROR_BY_CODE: Final[dict[int, type[PublishError]]] = {
    KafkaError._TRANSPORT: BrokersUnreachable,
    KafkaError._RESOLVE: BrokersUnreachable,
    KafkaError._ALL_BROKERS_DOWN: BrokersUnreachable,
    KafkaError._TIMED_OUT: BrokersUnreachable,
    KafkaError._MSG_TIMED_OUT: BrokersUnreachable,
    KafkaError.REQUEST_TIMED_OUT: BrokersUnreachable,
    KafkaError.NOT_ENOUGH_REPLICAS: BrokersUnreachable,
    KafkaError.NOT_ENOUGH_REPLICAS_AFTER_APPEND: BrokersUnreachable,
    KafkaError._UNKNOWN_TOPIC: UnknownTopic,
    KafkaError._UNKNOWN_PARTITION: UnknownTopic,
    KafkaError.UNKNOWN_TOPIC_OR_PART: UnknownTopic,
    KafkaError._AUTHENTICATION: NotAuthorized,
    KafkaError.SASL_AUTHENTICATION_FAILED: NotAuthorized,
    KafkaError.TOPIC_AUTHORIZATION_FAILED: NotAuthorized,
    KafkaError.CLUSTER_AUTHORIZATION_FAILED: NotAuthorized,
    KafkaError.MSG_SIZE_TOO_LARGE: ValueTooLarge,
    KafkaError.RECORD_LIST_TOO_LARGE: ValueTooLarge,
}


class KafkaConnection:
    """Connected to a topic that exists. Threads may share it; a forked child may not."""

    def __init__(
        self,
        settings: KafkaSettings,
        *,
        region: str | None,
        connect_timeout_seconds: float,
        delivery_timeout_seconds: float,
        options: Mapping[str, str | int | float | bool],
    ) -> None:
        """Connect. Raises BrokersUnreachable, UnknownTopic or NotAuthorized, and SettingsError for a wrong option."""
        self._settings = settings
        self._delivery_timeout_seconds = delivery_timeout_seconds
        self._last_error: KafkaError | None = None
        self._token_problem: str | None = None
        self.broken = False
        """Kafka's client has met what it cannot go on after; a new connection can."""
        self._client = self._build_client(region, options)
        self._stopped = threading.Event()
        self._listener = threading.Thread(
            target=_listen, args=(self._client, self._stopped), name="hears from Kafka", daemon=True
        )
        self._listener.start()
        # For a connection that nobody closed: its thread must not outlive it.
        self._when_forgotten = weakref.finalize(self, self._stopped.set)
        try:
            self._look_at_topic(connect_timeout_seconds)
        except PublishError:
            self._stop()
            raise

    def submit(
        self, messages: Sequence[tuple[str | bytes | None, bytes]], milliseconds: Sequence[int] | None = None
    ) -> "Future[None]":
        """Hand the messages to Kafka's client; the future ends when each is acknowledged or has failed.

        `milliseconds` are the records' times since 1970; 0 is now, as all are unless given.
        """
        publication = _Publication(self, len(messages))
        for position, (key, value) in enumerate(messages):
            if len(value) > catalog.MAX_VALUE_BYTES:
                problem = f"the value has {len(value)} bytes; allowed are at most {catalog.MAX_VALUE_BYTES}"
                publication.report(position, ValueTooLarge(problem))
            else:
                at = _NOW if milliseconds is None else milliseconds[position]
                self._produce(publication, position, key, value, milliseconds=at)
        return publication.future

    def submit_to_each_partition(self, value_of: Callable[[int], bytes]) -> "tuple[int, Future[None]]":
        """Hand a message for each partition of the topic to Kafka's client; how many, and a future as of `submit`.

        Asks the broker how many there are, for two seconds at most. Raises PublishError where it does not say.
        """
        partitions = self._look_at_topic(_LOOK_AGAIN_SECONDS)
        publication = _Publication(self, partitions)
        for partition in range(partitions):
            self._produce(publication, partition, None, value_of(partition), partition=partition)
        return partitions, publication.future

    def close(self) -> None:
        """Wait until all that was submitted is acknowledged or has failed, then disconnect."""
        self._client.flush(self._delivery_timeout_seconds)
        self._stop()

    def abandon(self) -> None:
        """In a forked child: never destroy Kafka's client, which would wait for threads that are not here."""
        self._when_forgotten.detach()
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(self._client))

    def explain(self, error: KafkaError) -> PublishError:
        """Kafka's error as one of ours, with what to do about it."""
        if error.fatal():
            self.broken = True
        topic, brokers = self._settings.kafka_job_topic, self._settings.kafka_brokers
        advice = {
            BrokersUnreachable: (
                f"brokers {brokers} do not answer ({error.str()}): check KAFKA_BROKERS, KAFKA_AUTH (now "
                f"{self._settings.kafka_auth}), the network and its security groups. What was sent may have arrived: "
                "send it again with the same event id, and it is done once"
            ),
            UnknownTopic: f"topic {topic!r} does not exist on {brokers}: check KAFKA_JOB_TOPIC, or create the topic",
            NotAuthorized: (
                f"brokers {brokers} refuse us ({error.str()}): check KAFKA_AUTH (now {self._settings.kafka_auth}) "
                "and that our role may kafka-cluster:Connect, DescribeTopic, WriteData and WriteDataIdempotently "
                f"for topic {topic!r}"
            ),
            ValueTooLarge: (
                f"topic {topic!r} does not take a record this large ({error.str()}): shorten the event's "
                f"template_data, or raise the topic's max.message.bytes to {2 * catalog.MAX_VALUE_BYTES}"
            ),
        }
        kind = _ERROR_BY_CODE.get(error.code(), PublishError)
        return kind(advice.get(kind, f"Kafka refused it: {error.str()} ({error.name()})"))

    def _build_client(self, region: str | None, options: Mapping[str, str | int | float | bool]) -> Producer:
        guaranteed: dict[str, Any] = {
            "bootstrap.servers": self._settings.kafka_brokers,
            "enable.idempotence": True,
            "acks": "all",
            "delivery.timeout.ms": round(self._delivery_timeout_seconds * 1000),
        }
        if refused := sorted(guaranteed.keys() & options.keys()):
            raise SettingsError(
                [f"options: {name} is given; allowed is all but {', '.join(guaranteed)}" for name in refused]
            )
        configuration: dict[str, Any] = {
            "linger.ms": 1,
            "compression.type": "lz4",
            # A batch of several events never exceeds what a topic must take for a single one.
            "batch.size": catalog.MAX_VALUE_BYTES,
            # The placement of Java's producers. Nothing relies on it.
            "partitioner": "murmur2_random",
            # Whatever matters is raised with its cause; librdkafka need not write to standard error too.
            "log_level": 0,
            **options,
            **guaranteed,
            "error_cb": self._remember_error,
        }
        if self._settings.kafka_auth == "iam":
            configuration |= iam_settings(self._settings.kafka_brokers, region, self._token)
        try:
            return Producer(configuration)
        except KafkaException as error:
            raise SettingsError([f"options: {error.args[0].str()}"]) from error

    def _token(self, region: str) -> tuple[str, float]:
        try:
            token = iam_token(region)
        except Exception as error:
            # librdkafka swallows it, so keep the cause for the error that follows.
            self._token_problem = f"{type(error).__name__}: {error}"
            raise
        self._token_problem = None
        return token

    def _remember_error(self, error: KafkaError) -> None:
        # "All brokers down" follows the error that says why.
        if self._last_error is None or error.code() != KafkaError._ALL_BROKERS_DOWN:
            self._last_error = error

    def _look_at_topic(self, timeout_seconds: float) -> int:
        """The number of its partitions."""
        topic = self._settings.kafka_job_topic
        try:
            found = self._client.list_topics(topic, timeout=timeout_seconds).topics[topic]
        except KafkaException as error:
            if self._token_problem is not None:
                raise _without_token(self._settings.kafka_brokers, self._token_problem) from error
            raise self.explain(self._last_error or error.args[0]) from error
        # Any other trouble with the topic, such as a leader being elected, may pass while we send.
        problem = found.error
        if problem is not None and _ERROR_BY_CODE.get(problem.code()) in (UnknownTopic, NotAuthorized):
            raise self.explain(problem)
        return len(found.partitions)

    def _produce(
        self,
        publication: "_Publication",
        position: int,
        key: str | bytes | None,
        value: bytes,
        *,
        partition: int = _BY_KEY,
        milliseconds: int = _NOW,
    ) -> None:
        def report(error: KafkaError | None, _: object) -> None:
            publication.report(position, None if error is None else self.explain(error))

        while True:
            try:
                self._client.produce(
                    self._settings.kafka_job_topic,
                    value,
                    key,
                    partition,
                    on_delivery=report,
                    timestamp=milliseconds,
                )
                return
            except BufferError:
                # The queue has room again when earlier messages are acknowledged, or have failed.
                time.sleep(_FULL_QUEUE_PAUSE_SECONDS)
            except KafkaException as error:
                publication.report(position, self.explain(error.args[0]))
                return

    def _stop(self) -> None:
        self._stopped.set()
        self._listener.join()


class _Publication:
    """The messages of one call, until Kafka has reported on each."""

    def __init__(self, connection: KafkaConnection, messages: int) -> None:
        self.future: Future[None] = Future()
        # What was handed to Kafka cannot be taken back, so the future cannot be cancelled.
        self.future.set_running_or_notify_cancel()
        self._connection = connection  # It must not be forgotten before the future ends.
        self._total = self._outstanding = messages
        self._failures: dict[int, PublishError] = {}
        self._reporting = threading.Lock()
        if not messages:
            self.future.set_result(None)

    def report(self, position: int, error: PublishError | None) -> None:
        with self._reporting:
            if error is not None:
                self._failures[position] = error
            self._outstanding -= 1
            if self._outstanding:
                return
        if self._failures:
            self.future.set_exception(self._combined())
        else:
            self.future.set_result(None)

    def _combined(self) -> PublishError:
        positions = sorted(self._failures)
        messages = list(dict.fromkeys(str(self._failures[position]) for position in positions))
        count = "" if self._total == 1 else f"{len(positions)} of {self._total} not acknowledged: "
        return type(self._failures[positions[0]])(count + "; ".join(messages), positions)


def region_of(brokers: str) -> str:
    """The AWS region in the names of MSK's brokers. Raises SettingsError where they name none."""
    # b-1.name.abc123.c2.kafka.eu-west-1.amazonaws.com, or kafka-serverless in place of kafka.
    found = re.search(r"\.kafka(?:-serverless)?\.([a-z0-9-]+)\.amazonaws\.com", brokers)
    if found is None:
        problem = "region is missing: KAFKA_AUTH=iam needs the cluster's AWS region"
        raise SettingsError([f"{problem}, and the brokers' names do not tell it"])
    return found[1]


def iam_settings(
    brokers: str, region: str | None, token: Callable[[str], tuple[str, float]] | None = None
) -> dict[str, Any]:
    """librdkafka's settings for MSK with IAM. `token` is what gives a token for a region: `iam_token`, or more than it.

    Raises NotAuthorized where there is no token now, and SettingsError without a region or the library that signs.
    """
    region, token = region or region_of(brokers), token or iam_token
    try:
        # Before Kafka's client asks for it, which would wait for ten seconds and not say why there is none.
        waiting = [token(region)]
    except ModuleNotFoundError as error:
        problem = f"allowed where {error.name} is installed, which the package's extra [iam] brings"
        raise SettingsError([f"KAFKA_AUTH='iam': {problem}"]) from error
    except Exception as error:
        raise _without_token(brokers, f"{type(error).__name__}: {error}") from error
    return {
        "security.protocol": "SASL_SSL",
        "sasl.mechanism": "OAUTHBEARER",
        "oauth_cb": lambda _: waiting.pop() if waiting else token(region),
    }


def _without_token(brokers: str, problem: str) -> NotAuthorized:
    return NotAuthorized(f"no token for {brokers} ({problem}): give this process AWS credentials")


def iam_token(region: str) -> tuple[str, float]:
    """A token of this process's AWS role for MSK, and when it expires in seconds since 1970, as librdkafka wants it."""
    from aws_msk_iam_sasl_signer import MSKAuthTokenProvider  # type: ignore[import-untyped]

    token, expires_at_ms = MSKAuthTokenProvider.generate_auth_token(region)
    return token, expires_at_ms / 1000


def _listen(client: Producer, stopped: threading.Event) -> None:
    while not stopped.is_set():
        client.poll(_LISTEN_SECONDS)

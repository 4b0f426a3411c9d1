"""Any record has exactly one owner among the functions: valid for one, a dead letter of one, or a heartbeat."""

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any, Final

from campaign_jobs.catalog import EMAIL, HEARTBEAT_EVENT_TYPE, POSITION, REWARD, EventJobType
from campaign_jobs.database.connection import Database
from campaign_jobs.events import EVENT_ADAPTER, as_value, parse, partition_key, read_object
from campaign_jobs.settings import BY_FUNCTION, EventJobSettings, UnroutableSettings
from campaign_jobs.worker.delivery import Coordinates
from campaign_jobs.worker.messages import Received
from campaign_jobs.worker.outcomes import Rejected
from campaign_jobs.worker.pipeline import Pipeline
from campaign_jobs.worker.settle import Settlement
from campaign_jobs.worker.unroutable import Unroutable

NOW: Final = datetime(2026, 3, 1, tzinfo=UTC)
# Never connected to: only what looks at the record itself is tried.
_NO_DATABASE: Final = Database("")
_JOB_TYPES: Final = (EMAIL, POSITION, REWARD)


class _NoJob:
    least_seconds = 0.0

    def process(self, deliveries: Sequence[Any], deadline: Any) -> Sequence[Any]:
        raise AssertionError("nothing is processed here")

    def give_up(self, given_up: Sequence[Any]) -> Sequence[Any]:
        raise AssertionError("nothing is given up here")


def _settings(name: str) -> Any:
    of = BY_FUNCTION[name]
    urls = {key: f"https://sqs.example.com/{key}" for key in of.environment_names() if "_QUEUE_URL_" in key}
    values = {
        "DATABASE_URL": "postgresql://db/jobs",
        "DEFAULT_SENDER": "a@example.com",
        "UNSUBSCRIBE_URL": "https://mail.example.com",
        "UNSUBSCRIBE_KEYS": "k" * 32,
    }
    return of.load({**values, **urls})


def _pipeline(job_type: EventJobType) -> Pipeline:
    settings = _settings(job_type.name)
    assert isinstance(settings, EventJobSettings)
    return Pipeline(job_type, _NoJob(), settings, _NO_DATABASE)


_PIPELINES: Final = {job_type.name: _pipeline(job_type) for job_type in _JOB_TYPES}
_unroutable_settings = _settings("unroutable")
assert isinstance(_unroutable_settings, UnroutableSettings)
_UNROUTABLE: Final = Unroutable(_unroutable_settings, _NO_DATABASE)


def run(data: bytes) -> None:
    received = Received(Coordinates("job-events", 0, 0), data, NOW, NOW)
    owners = []
    beats = 0
    valid = None
    for job_type in _JOB_TYPES:
        item = _PIPELINES[job_type.name]._classify(received, job_type.lanes[0], NOW)
        if isinstance(item, Settlement):
            assert isinstance(item.outcome, Rejected) and item.outcome.reason
            owners.append(job_type.name)
        elif isinstance(item, Received):
            beats += 1
        elif item is not None:
            valid = item.delivery.event
            owners.append(job_type.name)
    rejected = _UNROUTABLE._type_of(received)
    if isinstance(rejected, Rejected):
        assert rejected.reason
        # It goes into logs and messages, and is read by people.
        assert rejected.reason.isprintable()
        owners.append("unroutable")
    if beats:
        # One for each lane.
        assert (beats, owners, rejected) == (len(_JOB_TYPES), [], HEARTBEAT_EVENT_TYPE)
        return
    assert len(owners) == 1, owners
    if valid is not None:
        again = as_value(valid)
        assert parse(read_object(again), recorded_at=NOW) == valid
        assert EVENT_ADAPTER.validate_json(again) == valid
        assert partition_key(valid).isprintable()
        # What PostgreSQL does not hold would fail the statement of a whole batch.
        assert "\\u0000" not in again.decode() and b"\x00" not in again

"""What becomes of a task: the mapping file, and the translation of one task by it."""

import json
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib import resources
from pathlib import Path
from typing import Any, Final, Self
from uuid import UUID

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from campaign_jobs import catalog, events
from campaign_jobs.errors import InvalidEvent
from campaign_jobs.events import Event
from campaign_jobs_cli.asynq.errors import WrongMapping

INCLUDED: Final = "base-server"
"""The name of the mapping that comes along."""
_ANY_ID: Final = str(UUID(int=0))
_ANY_TIME: Final = datetime(2025, 1, 1, 12, 0, 0, 123456, UTC)


@dataclass(frozen=True)
class Becomes:
    """The task becomes an event."""

    type: str
    data: Mapping[str, Any]

    def event(self, event_id: str, timestamp: datetime) -> Event:
        """Raises InvalidEvent where it does not follow the contract."""
        campaign_id = self.data.get("campaign_id")
        envelope = {
            "id": event_id,
            "type": self.type,
            # As `events.new_event` does, and existing producers.
            "account_id": campaign_id,
            "campaign_id": campaign_id,
            "data": self.data,
            "timestamp": timestamp,
        }
        return events.parse(envelope, recorded_at=timestamp)


@dataclass(frozen=True)
class Drops:
    """The task is finished without an event, because the mapping says so."""

    reason: str


@dataclass(frozen=True)
class Stays:
    """The task stays in Asynq as it is."""

    reason: str


Verdict = Becomes | Drops | Stays


class Rule(BaseModel):
    """What becomes of the tasks of one type."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    event: str | None = None
    data: dict[str, str] | None = None
    constants: dict[str, str | int | float] = {}
    drop: str | None = Field(None, min_length=1)
    stay: str | None = Field(None, min_length=1)

    @model_validator(mode="after")
    def _says_one_thing(self) -> Self:
        if sum(each is not None for each in (self.event, self.drop, self.stay)) != 1:
            raise ValueError("allowed is exactly one of event, drop and stay")
        if self.event is None and (self.data is not None or self.constants):
            raise ValueError("data and constants go with event")
        if self.event is not None and self.event not in catalog.JOB_TYPE_BY_EVENT_TYPE:
            raise ValueError(f"allowed events are {', '.join(catalog.JOB_TYPE_BY_EVENT_TYPE)}")
        return self

    def verdict(self, payload: bytes) -> Verdict:
        if self.drop is not None:
            return Drops(self.drop)
        if self.stay is not None:
            return Stays(self.stay)
        assert self.event is not None
        try:
            decoded = json.loads(payload.decode())
        except (ValueError, RecursionError):
            return Stays("its payload is not JSON")
        if not isinstance(decoded, dict):
            return Stays("its payload is not a JSON object")
        becomes = Becomes(self.event, self._data_of(decoded))
        try:
            value = events.as_value(becomes.event(_ANY_ID, _ANY_TIME))
        except InvalidEvent as error:
            return Stays(f"its event would not follow the contract: {error}")
        if len(value) > catalog.MAX_VALUE_BYTES:
            return Stays(f"its event would have {len(value)} bytes; allowed are {catalog.MAX_VALUE_BYTES}")
        return becomes

    def _data_of(self, payload: Mapping[str, Any]) -> dict[str, Any]:
        data: dict[str, Any] = dict(payload) if self.data is None else {}
        for field, source in (self.data or {}).items():
            if (value := _at(payload, source)) is not None:
                _put(data, field, value)
        for field, constant in self.constants.items():
            _put(data, field, constant)
        return data


class _File(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    tasks: dict[str, Rule]


@dataclass(frozen=True)
class TaskMapping:
    """The rules by task type."""

    rules: Mapping[str, Rule]

    @classmethod
    def load(cls, name: str) -> Self:
        """The mapping in the file `name`, or the one that comes along under that name. Raises WrongMapping."""
        included = resources.files(__package__) / "mappings" / f"{name}.toml"
        try:
            text = included.read_text() if name == INCLUDED else Path(name).read_text()
        except (OSError, UnicodeDecodeError) as error:
            raise WrongMapping(f"the mapping {name} cannot be read: {error}") from error
        try:
            return cls(_File.model_validate(tomllib.loads(text)).tasks)
        except tomllib.TOMLDecodeError as error:
            raise WrongMapping(f"the mapping {name} is not TOML: {error}") from error
        except ValidationError as error:
            problems = [
                f"{'.'.join(str(part) for part in each['loc'])}: {each['msg'].removeprefix('Value error, ')}"
                for each in error.errors(include_url=False)
            ]
            raise WrongMapping(f"the mapping {name}: {'; '.join(problems)}") from error

    def verdict(self, task_type: str, payload: bytes) -> Verdict:
        """What becomes of a task of this type with this payload."""
        rule = self.rules.get(task_type)
        if rule is None:
            return Stays("the mapping does not know its type")
        return rule.verdict(payload)


def _at(payload: Mapping[str, Any], path: str) -> Any:
    value: Any = payload
    for part in path.split("."):
        value = value.get(part) if isinstance(value, dict) else None
    return value


def _put(data: dict[str, Any], path: str, value: Any) -> None:
    *parents, last = path.split(".")
    for part in parents:
        inner = data.get(part)
        data[part] = dict(inner) if isinstance(inner, dict) else {}
        data = data[part]
    data[last] = value

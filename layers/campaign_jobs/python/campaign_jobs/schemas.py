"""Publishes the event contract as JSON Schema and AsyncAPI, from the models that check it.

    python -m campaign_jobs.schemas [--check] [--directory docs/contract]

writes both files, or with --check only says, by its exit status, whether they are as they should be.
"""

import argparse
import ast
import inspect
import json
import sys
from itertools import pairwise
from pathlib import Path
from typing import Any, Final

from campaign_jobs import __version__, catalog, events

DEFAULT_DIRECTORY: Final = Path("docs/contract")
SCHEMA_FILE: Final = "event.schema.json"
ASYNCAPI_FILE: Final = "asyncapi.json"

Json = dict[str, Any]

# What the type of text takes: UUIDs in any usual notation, and what PostgreSQL's text holds.
_UUID: Final = "[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}"
_UUID_PATTERN: Final = rf"^([0-9a-fA-F]{{32}}|(urn:uuid:)?{_UUID}|\{{{_UUID}\}})$"
_TEXT_PATTERN: Final = r"^[^\u0000]*$"
_PRINTABLE_PATTERN: Final = r"^[^\u0000-\u001f\u007f-\u009f]*$"

_CAMPAIGN: Final = "6f1c2a34-9f0b-4c57-8d1e-2b7a5c3d4e01"
_USER: Final = "6f1c2a34-9f0b-4c57-8d1e-2b7a5c3d4e02"
_USER_REWARD: Final = "6f1c2a34-9f0b-4c57-8d1e-2b7a5c3d4e03"
_EXAMPLE_DATA: Final[dict[str, Json]] = {
    "job.email.verification": {"priority": 1},
    "job.email.welcome": {},
    "job.email.position_update": {"template_data": {"headline": "You are moving up", "places": 12}},
    "job.email.reward_earned": {"user_reward_id": _USER_REWARD},
    "job.email.milestone": {"milestone": 10},
    "job.position.recalculate": {"campaign_id": _CAMPAIGN, "points_per_referral": 1},
    "job.reward.deliver": {"user_reward_id": _USER_REWARD},
}
_KEYS: Final = {
    events.EmailEvent: "data.user_id",
    events.PositionEvent: "data.campaign_id",
    events.RewardEvent: "data.user_reward_id",
}


def example(event_type: str) -> Json:
    """An event of this type as a producer sends it."""
    data = dict(_EXAMPLE_DATA[event_type])
    envelope: Json = {"id": "550e8400-e29b-41d4-a716-446655440000", "type": event_type}
    if event_type.startswith(events.EMAIL_EVENT_PREFIX):
        name = event_type.removeprefix(events.EMAIL_EVENT_PREFIX)
        data = {"type": name, "campaign_id": _CAMPAIGN, "user_id": _USER, **data}
    if "campaign_id" in data:
        envelope |= {"account_id": _CAMPAIGN, "campaign_id": _CAMPAIGN}
    return {**envelope, "data": data, "timestamp": "2025-01-01T12:00:00Z"}


def event_schema() -> Json:
    """The contract as JSON Schema 2020-12; a definition for each event type, named by it."""
    models = events.EVENT_ADAPTER.json_schema()["$defs"]
    definitions = {
        name: _as_accepted(name, models[name]) for name in sorted(models) if name.endswith("Payload")
    }
    event_definitions = {
        event_type: _event_definition(event_type, models) for event_type in catalog.JOB_TYPE_BY_EVENT_TYPE
    }
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "Event",
        "description": (
            "The value of a record on the topic of job events: UTF-8 JSON of at most "
            f"{catalog.MAX_VALUE_BYTES} bytes. Other fields are ignored; null means absent."
        ),
        "type": "object",
        "required": ["type"],
        "oneOf": [{"$ref": f"#/$defs/{event_type}"} for event_type in event_definitions],
        "$defs": {**event_definitions, **definitions},
    }


def asyncapi() -> Json:
    """The contract as an AsyncAPI 3.0 document, which refers to the schema next to it."""
    jobs = {event_type: _message(event_type) for event_type in catalog.JOB_TYPE_BY_EVENT_TYPE}
    messages = {**jobs, catalog.HEARTBEAT_EVENT_TYPE: _heartbeat()}
    channel = "#/channels/jobEvents"
    return {
        "asyncapi": "3.0.0",
        "info": {
            "title": "campaign-jobs",
            "version": __version__,
            "description": "Events that ask for background jobs of waitlist and referral campaigns.",
            "license": {"name": "MIT"},
        },
        "defaultContentType": "application/json",
        "servers": {
            "kafka": {
                "host": "{broker}",
                "protocol": "kafka",
                "description": "KAFKA_BROKERS; on AWS Amazon MSK, with IAM (KAFKA_AUTH=iam).",
                "variables": {
                    "broker": {"default": "localhost:9092", "description": "host:port of any broker"}
                },
            }
        },
        "channels": {
            "jobEvents": {
                "address": catalog.DEFAULT_TOPIC,
                "title": "Job events",
                "description": (
                    "The one topic of all jobs. Order is not promised, and an event may come more than once: its id "
                    f"says that it is the same. A value has at most {catalog.MAX_VALUE_BYTES} bytes."
                ),
                "messages": {name: {"$ref": f"#/components/messages/{name}"} for name in messages},
                "bindings": {"kafka": {"partitions": catalog.TOPIC_PARTITIONS, "bindingVersion": "0.5.0"}},
            }
        },
        "operations": {
            "doJob": {
                "action": "receive",
                "title": "Do a job",
                "channel": {"$ref": channel},
                "messages": [{"$ref": f"{channel}/messages/{name}"} for name in jobs],
            },
            "beat": {
                "action": "send",
                "title": "Show that records get through",
                "channel": {"$ref": channel},
                "messages": [{"$ref": f"{channel}/messages/{catalog.HEARTBEAT_EVENT_TYPE}"}],
            },
        },
        "components": {"messages": messages},
    }


def _message(event_type: str) -> Json:
    key = _KEYS[_model(event_type)]
    return {
        "name": event_type,
        "title": event_type,
        "summary": inspect.getdoc(_model(event_type).model_fields["data"].annotation),
        "contentType": "application/json",
        "payload": {
            "schemaFormat": "application/schema+json;version=2020-12",
            "schema": {"$ref": f"{SCHEMA_FILE}#/$defs/{event_type}"},
        },
        "bindings": {
            "kafka": {
                "key": {"type": "string", "description": f"{key}; nothing relies on it"},
                "bindingVersion": "0.5.0",
            }
        },
        "examples": [{"name": "example", "payload": example(event_type)}],
    }


def _heartbeat() -> Json:
    text, moment = {"type": "string"}, {"type": "string", "format": "date-time"}
    partition = {"type": "integer", "minimum": 0, "description": "The one that it is published to."}
    example: Json = {
        "id": "0f0e8c1a-3a52-4a57-9a53-7d0c6b9b1e11",
        "type": catalog.HEARTBEAT_EVENT_TYPE,
        "data": {"partition": 3},
        "timestamp": "2025-01-01T12:00:00+00:00",
    }
    return {
        "name": catalog.HEARTBEAT_EVENT_TYPE,
        "title": catalog.HEARTBEAT_EVENT_TYPE,
        "summary": "Asks for nothing; in every partition each minute. No service publishes it, and readers skip it.",
        "contentType": "application/json",
        "payload": {
            "type": "object",
            "required": list(example),
            "properties": {
                "id": text,
                "type": {"const": catalog.HEARTBEAT_EVENT_TYPE},
                "data": {
                    "type": "object",
                    "required": ["partition"],
                    "properties": {"partition": partition},
                },
                "timestamp": moment,
            },
        },
        "examples": [{"name": "example", "payload": example}],
    }


def _model(event_type: str) -> type[events.Event]:
    return type(events.EVENT_ADAPTER.validate_python(example(event_type)))


def _event_definition(event_type: str, models: dict[str, Json]) -> Json:
    model = _model(event_type)
    schema = _as_accepted(model.__name__, models[model.__name__])
    # The record's own timestamp stands in for a missing one.
    schema["required"] = ["id", "type", "data"]
    schema["properties"]["timestamp"] = _nullable(schema["properties"]["timestamp"])
    schema["properties"]["id"]["pattern"] = _PRINTABLE_PATTERN
    schema["properties"]["type"] = {"const": event_type, "description": "What is asked for."}
    if model is events.EmailEvent:
        schema["properties"]["data"] = _email_data(event_type.removeprefix(events.EMAIL_EVENT_PREFIX), schema)
    return {
        "title": event_type,
        "description": inspect.getdoc(model.model_fields["data"].annotation),
        **{name: entry for name, entry in schema.items() if name not in ("title", "description")},
        "examples": [example(event_type)],
    }


def _email_data(email_type: str, schema: Json) -> Json:
    """The payload, and what this type of mail needs besides."""
    own: Json = {"properties": {"type": {"enum": [email_type, None]}}, "required": []}
    for needing, field in (("reward_earned", "user_reward_id"), ("milestone", "milestone")):
        if email_type == needing:
            own["properties"][field] = {"not": {"type": "null"}}
            own["required"] = [field]
    return {"allOf": [schema["properties"]["data"], own]}


def _as_accepted(name: str, schema: Json) -> Json:
    """Pydantic's schema of a model, with its fields' docstrings and with what the model's own checks add or allow."""
    required = [field for field in schema["required"] if (name, field) != ("EmailJobPayload", "type")]
    documented = _field_docstrings(name)
    properties = {}
    for field, definition in schema["properties"].items():
        accepted = _checked(definition) if field in required else _nullable(_checked(definition))
        if accepted.get("default") is None:
            accepted.pop("default", None)
        properties[field] = accepted | ({"description": documented[field]} if field in documented else {})
    return {**schema, "properties": properties, "required": required}


def _checked(definition: Json) -> Json:
    definition = {name: entry for name, entry in definition.items() if name != "title"}
    if "anyOf" in definition:
        return {**definition, "anyOf": [_checked(branch) for branch in definition["anyOf"]]}
    if definition.get("type") == "string" and "enum" not in definition:
        if definition.get("format") == "uuid":
            return {**definition, "pattern": _UUID_PATTERN}
        return {"pattern": _TEXT_PATTERN, **definition}
    if definition.get("type") == "object":
        [(pattern, value)] = definition.pop("patternProperties").items()
        definition["maxProperties"] = definition.pop("maxLength")
        return {
            **definition,
            "patternProperties": {pattern: _nullable(_checked(value))},
            "additionalProperties": False,
        }
    return definition


def _nullable(definition: Json) -> Json:
    """Null is absent, in whatever may be absent."""
    null = {"type": "null"}
    if "anyOf" in definition:
        branches = definition["anyOf"]
        return definition if null in branches else {**definition, "anyOf": [*branches, null]}
    if "enum" in definition:
        return {"enum": [*definition["enum"], None]}
    outside = {name: entry for name, entry in definition.items() if name in ("default", "description")}
    inside = {name: entry for name, entry in definition.items() if name not in outside}
    return {"anyOf": [inside, null], **outside}


def _field_docstrings(name: str) -> dict[str, str]:
    """The texts below a model's fields. Read from the source, as having Pydantic do it would slow every cold start."""
    classes = {
        node.name: node
        for node in ast.parse(inspect.getsource(events)).body
        if isinstance(node, ast.ClassDef)
    }
    found: dict[str, str] = {}
    for ancestor in reversed(getattr(events, name).__mro__):
        body = classes[ancestor.__name__].body if ancestor.__name__ in classes else []
        for field, text in pairwise(body):
            match field, text:
                case ast.AnnAssign(target=ast.Name(id=field_name)), ast.Expr(
                    value=ast.Constant(value=str(words))
                ):
                    found[field_name] = inspect.cleandoc(words)
    return found


def files() -> dict[str, str]:
    """The published files by name; the same models always give the same texts."""
    documents = {SCHEMA_FILE: event_schema(), ASYNCAPI_FILE: asyncapi()}
    return {name: json.dumps(document, indent=2) + "\n" for name, document in documents.items()}


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m campaign_jobs.schemas", description="Publish the event contract."
    )
    parser.add_argument(
        "--check", action="store_true", help="write nothing; fail where a file is not up to date"
    )
    parser.add_argument("--directory", type=Path, default=DEFAULT_DIRECTORY, help="where the files are")
    options = parser.parse_args(arguments)
    status = 0
    for name, text in files().items():
        path = options.directory / name
        if not options.check:
            path.write_text(text, encoding="utf-8")
        elif not path.is_file() or path.read_text(encoding="utf-8") != text:
            sys.stderr.write(f"{path} is not what the models say: run python -m campaign_jobs.schemas\n")
            status = 1
    return status


if __name__ == "__main__":
    sys.exit(main())

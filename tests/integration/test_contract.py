"""The event contract: what is accepted can be stored and sent again, what is not gets a reason, and what is
published about it says the same."""

import json
from copy import deepcopy
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from campaign_jobs import catalog, events, schemas
from campaign_jobs.database.connection import Connection
from campaign_jobs.errors import InvalidEvent, NotOurs
from campaign_jobs.relay.heartbeats import heartbeat

NOW = datetime(2025, 6, 1, tzinfo=UTC)
EVENT_TYPES = list(catalog.JOB_TYPE_BY_EVENT_TYPE)
ABSENT = object()

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters(exclude_categories=[])),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)
uuids = st.uuids().map(str)
plausible = {
    "id": st.text(max_size=210) | uuids,
    "type": st.sampled_from([*EVENT_TYPES, catalog.HEARTBEAT_EVENT_TYPE]),
    "account_id": st.text(max_size=210),
    "campaign_id": uuids,
    "timestamp": st.datetimes().map(datetime.isoformat)
    | st.just("0001-01-01T00:00:00+14:00")
    | st.text(max_size=30),
    "user_id": uuids | st.sampled_from(["{00000000-0000-4000-8000-00000000000a}", "0" * 32, "nobody"]),
    "user_reward_id": uuids,
    "priority": st.integers(-(2**33), 2**33),
    "milestone": st.integers(-1, 2**33),
    "points_per_referral": st.integers(-1, 2**33),
    "template_id": uuids,
    "template_data": st.dictionaries(
        st.from_regex(r"[a-z_]{1,5}", fullmatch=True) | st.from_regex(r"[A-Z0-9]{1,3}\n?", fullmatch=True),
        st.text(st.characters(exclude_categories=[]), max_size=5)
        | st.text(st.sampled_from("a\0\ud800é"), max_size=3)
        | st.floats()
        | st.integers()
        | st.none(),
        max_size=3,
    ),
}


def an_object(names: list[str], **more: st.SearchStrategy[Any]) -> st.SearchStrategy[dict[str, Any]]:
    """Mostly as it should be; any field may be absent, null, or anything at all."""
    fields = {name: plausible[name] for name in names} | more
    return st.fixed_dictionaries(fields).flatmap(
        lambda good: st.dictionaries(
            st.sampled_from(list(fields)), st.none() | st.just(ABSENT) | json_values, max_size=2
        ).map(
            lambda changes: {
                name: value for name, value in {**good, **changes}.items() if value is not ABSENT
            }
        )
    )


payloads = an_object(
    ["campaign_id", "user_id", "user_reward_id", "priority", "milestone", "points_per_referral"],
) | an_object(
    ["campaign_id", "user_id", "user_reward_id", "template_id", "template_data"], milestone=st.just(3)
)
objects = an_object(["id", "type", "account_id", "campaign_id", "timestamp"], data=payloads)
decent_objects = st.builds(
    lambda event_type, name, timestamp, data: {
        "id": name,
        "type": event_type,
        "timestamp": timestamp,
        "data": data,
    },
    st.sampled_from(EVENT_TYPES),
    uuids,
    st.none() | st.datetimes().map(datetime.isoformat),
    st.fixed_dictionaries(
        {
            "campaign_id": uuids,
            "user_id": uuids,
            "user_reward_id": uuids,
            "milestone": st.integers(1, 2**31),
            "priority": st.integers(-5, 5) | st.sampled_from([2**31 - 1, 2**31, -(2**31)]),
            # What a text, a number or a key must not hold is rare enough that most of them are accepted.
            "template_data": st.fixed_dictionaries(
                {
                    "name": st.sampled_from(["é😀", "é😀", "NUL \0", "lone \ud800"]),
                    "places": st.integers() | st.floats() | st.none(),
                }
            ),
        }
    ),
)


def parsed(decoded: dict[str, Any]) -> events.Event:
    """As the pipeline does, from the bytes of a record."""
    value = json.dumps(decoded, allow_nan=True).encode()
    read = events.read_object(value)
    if events.owner(read["type"]) is None:
        raise NotOurs("a heartbeat")
    return events.parse(read, recorded_at=NOW)


@settings(max_examples=400, deadline=None)
@given(objects | decent_objects | json_values)
def test_whatever_comes_is_an_event_or_gets_a_reason(decoded: Any) -> None:
    try:
        event = parsed(decoded)
    except (InvalidEvent, NotOurs) as error:
        reason = str(error)
        assert reason
        assert len(reason) < 5_000
        reason.encode()
    else:
        assert parsed(events.as_json(event)) == event


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(batch=st.lists(decent_objects | objects, min_size=5, max_size=30))
def test_what_is_an_event_can_be_stored_in_one_statement(connection: Connection, batch: list[Any]) -> None:
    accepted = []
    for decoded in batch:
        try:
            accepted.append(parsed(decoded))
        except (InvalidEvent, NotOurs):
            pass
    data = [event.data.model_dump() for event in accepted]
    columns = [
        [event.id for event in accepted],
        [event.account_id for event in accepted],
        [event.timestamp for event in accepted],
        [payload.get("user_id") or payload.get("user_reward_id") for payload in data],
        [payload.get("priority") or payload.get("points_per_referral") for payload in data],
        [payload.get("milestone") for payload in data],
        [json.dumps(payload.get("template_data")) for payload in data],
        [json.dumps(events.as_json(event)) for event in accepted],
    ]
    stored = connection.execute(
        "SELECT id, account_id, moment, count(*) OVER () FROM unnest(%s::text[], %s::text[], %s::timestamptz[], "
        "%s::uuid[], %s::int[], %s::int[], %s::jsonb[], %s::jsonb[]) "
        "AS entry (id, account_id, moment, subject, number, milestone, template_data, event)",
        columns,
    ).fetchall()
    assert [(row[0], row[1]) for row in stored] == [(event.id, event.account_id) for event in accepted]


# What is published.


@pytest.fixture(scope="session")
def validator() -> jsonschema.Draft202012Validator:
    jsonschema.Draft202012Validator.check_schema(schemas.event_schema())
    return jsonschema.Draft202012Validator(schemas.event_schema())


def changed(event_type: str, path: str, value: Any) -> dict[str, Any]:
    event = deepcopy(schemas.example(event_type))
    *outer, name = path.split(".")
    target = event
    for step in outer:
        target = target[step]
    if value is ABSENT:
        target.pop(name, None)
    else:
        target[name] = value
    return event


GOOD = [
    *((event_type, "unknown", {"extra": [1]}) for event_type in EVENT_TYPES),
    *((event_type, "data.unknown", None) for event_type in EVENT_TYPES),
    ("job.email.welcome", "data.type", ABSENT),
    ("job.email.welcome", "data.type", None),
    ("job.email.welcome", "timestamp", ABSENT),
    ("job.email.welcome", "timestamp", None),
    ("job.email.welcome", "account_id", None),
    ("job.email.welcome", "data.priority", None),
    ("job.email.welcome", "data.priority", -5),
    ("job.email.welcome", "data.template_id", None),
    ("job.email.welcome", "data.template_data", None),
    ("job.email.welcome", "data.template_data", {"a": "text", "b": 1, "c": 1.5, "d": None}),
    ("job.email.welcome", "data.user_id", "0" * 32),
    ("job.email.welcome", "data.user_id", "urn:uuid:00000000-0000-4000-8000-00000000000a"),
    ("job.email.welcome", "data.user_id", "{00000000-0000-4000-8000-00000000000A}"),
    ("job.position.recalculate", "data.points_per_referral", 0),
    ("job.position.recalculate", "data.points_per_referral", None),
    ("job.reward.deliver", "campaign_id", ABSENT),
]
BAD = [
    *(
        (event_type, "id", wrong)
        for event_type in EVENT_TYPES
        for wrong in (ABSENT, None, "", "x" * 201, 7, "a\nb")
    ),
    *((event_type, "data", wrong) for event_type in EVENT_TYPES for wrong in (ABSENT, None, [], "text", {})),
    ("job.email.welcome", "data.type", "verification"),
    ("job.email.welcome", "data.user_id", ABSENT),
    ("job.email.welcome", "data.user_id", None),
    ("job.email.welcome", "data.user_id", "42"),
    ("job.email.welcome", "data.user_id", "urn:uuid:" + "0" * 32),
    ("job.email.welcome", "data.campaign_id", 42),
    ("job.email.welcome", "data.priority", 2**31),
    ("job.email.welcome", "data.priority", "1"),
    ("job.email.welcome", "data.priority", 1.5),
    ("job.email.welcome", "data.template_data", ["a"]),
    ("job.email.welcome", "data.template_data", {"not-a-name": 1}),
    ("job.email.welcome", "data.template_data", {"a": True}),
    ("job.email.welcome", "data.template_data", {"a": {"b": 1}}),
    ("job.email.welcome", "data.template_data", {"a": "x" * 5001}),
    ("job.email.welcome", "data.template_data", {"a": "NUL \0"}),
    ("job.email.welcome", "data.template_data", {f"a{number}": 1 for number in range(51)}),
    ("job.email.welcome", "account_id", "NUL \0"),
    ("job.email.welcome", "timestamp", 1735732800),
    ("job.email.reward_earned", "data.user_reward_id", ABSENT),
    ("job.email.reward_earned", "data.user_reward_id", None),
    ("job.email.milestone", "data.milestone", ABSENT),
    ("job.email.milestone", "data.milestone", None),
    ("job.email.milestone", "data.milestone", 0),
    ("job.position.recalculate", "data.campaign_id", ABSENT),
    ("job.position.recalculate", "data.points_per_referral", -1),
    ("job.reward.deliver", "data.user_reward_id", None),
    ("job.email.welcome", "type", "job.email.wellcome"),
    ("job.email.welcome", "type", None),
]


@pytest.mark.parametrize(("event_type", "path", "value"), GOOD)
def test_schema_and_models_accept(
    validator: jsonschema.Draft202012Validator, event_type: str, path: str, value: Any
) -> None:
    event = changed(event_type, path, value)
    validator.validate(event)
    assert parsed(event).type == event_type


@pytest.mark.parametrize(("event_type", "path", "value"), BAD)
def test_schema_and_models_refuse(
    validator: jsonschema.Draft202012Validator, event_type: str, path: str, value: Any
) -> None:
    event = changed(event_type, path, value)
    assert not validator.is_valid(event)
    with pytest.raises((InvalidEvent, NotOurs)):
        parsed(event)


# What JSON Schema cannot say, or not everywhere.
@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("data.template_data", {"a": "lone \ud800"}),
        ("account_id", "lone \udfff"),
        ("id", "lone \ud800"),
        ("data.template_data", {"a": float("nan")}),
        ("data.template_data", {"a": float("-inf")}),
        ("data.template_data", {"a\n": 1}),
        ("data.priority", 1.0),
        ("timestamp", "0001-01-01T00:00:00+14:00"),
        ("timestamp", "9999-12-31T23:59:59-14:00"),
        ("timestamp", "yesterday"),
    ],
)
def test_models_refuse(path: str, value: Any) -> None:
    with pytest.raises((InvalidEvent, NotOurs)):
        parsed(changed("job.email.welcome", path, value))


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(decoded=decent_objects)
def test_what_is_an_event_satisfies_the_schema_as_it_is_sent_again(
    validator: jsonschema.Draft202012Validator, decoded: dict[str, Any]
) -> None:
    try:
        event = parsed(decoded)
    except (InvalidEvent, NotOurs):
        return
    validator.validate(events.as_json(event))


def test_every_event_type_is_published_with_an_example_that_is_an_event() -> None:
    messages = schemas.asyncapi()["components"]["messages"]
    del messages[catalog.HEARTBEAT_EVENT_TYPE]
    assert list(messages) == EVENT_TYPES
    for event_type, message in messages.items():
        [example] = message["examples"]
        event = parsed(example["payload"])
        assert event.type == event_type
        field = message["bindings"]["kafka"]["key"]["description"].split(";")[0].removeprefix("data.")
        assert events.partition_key(event) == example["payload"]["data"][field]


def test_the_heartbeat_is_published_as_relay_sends_it(validator: jsonschema.Draft202012Validator) -> None:
    message = schemas.asyncapi()["components"]["messages"][catalog.HEARTBEAT_EVENT_TYPE]
    [example] = message["examples"]
    own = jsonschema.Draft202012Validator(message["payload"])
    for sent in (example["payload"], json.loads(heartbeat(7, NOW))):
        own.validate(sent)
        assert sent.keys() == message["payload"]["properties"].keys()
        # It asks for no job.
        assert not validator.is_valid(sent)
        with pytest.raises(NotOurs, match="a heartbeat"):
            parsed(sent)


def test_every_reference_between_the_published_files_leads_somewhere() -> None:
    documents = {name: json.loads(text) for name, text in schemas.files().items()}

    def references(node: Any) -> list[str]:
        if isinstance(node, list):
            return [found for entry in node for found in references(entry)]
        if isinstance(node, dict):
            own = [node["$ref"]] if "$ref" in node else []
            return own + [found for entry in node.values() for found in references(entry)]
        return []

    for name, document in documents.items():
        found = references(document)
        assert found
        for reference in found:
            file, _, pointer = reference.partition("#/")
            target = documents[file or name]
            for step in pointer.split("/"):
                target = target[step]


def test_the_published_files_are_what_the_models_say(repository: Path) -> None:
    directory = repository / "docs/contract"
    assert schemas.main(["--check", "--directory", str(directory)]) == 0


def test_a_file_that_has_drifted_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert schemas.main(["--directory", str(tmp_path)]) == 0
    assert schemas.main(["--check", "--directory", str(tmp_path)]) == 0
    drifted = tmp_path / "event.schema.json"
    drifted.write_text(drifted.read_text().replace("5000", "5001"))
    assert schemas.main(["--check", "--directory", str(tmp_path)]) == 1
    assert f"{drifted} is not what the models say" in capsys.readouterr().err

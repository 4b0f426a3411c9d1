"""Lambda's filter patterns, line by line as its developer guide documents them for Kafka."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from campaign_jobs import catalog
from local.mappings.filters import InvalidFilterPattern, KafkaFilter

DOCUMENTED_RULES = [
    # (rule, values of "field" that match, values that do not)
    ([None], [None], [0, "", False, "null"]),
    ([""], [""], [None, " "]),
    (["a"], ["a"], ["A", "ab", None, 1]),
    (["a", "b"], ["a", "b"], ["c"]),
    ([1], [1, 1.0], [True, "1", 2]),
    ([True], [True], [1, "true", False]),
    ([{"equals-ignore-case": "Ab"}], ["ab", "AB"], ["abc", None]),
    ([{"anything-but": ["a", "b"]}], ["c", 5, None, ""], ["a", "b"]),
    ([{"anything-but": "a"}], ["b"], ["a"]),
    ([{"numeric": ["=", 100]}], [100, 100.0], [101, "100", True]),
    ([{"numeric": [">", 10, "<=", 20]}], [11, 20], [10, 21, None]),
    ([{"exists": True}], ["", None, 0, ["a"]], [{"leaf": "below"}, []]),
    ([{"exists": False}], [[]], ["", None, 0]),
    ([{"prefix": "job.email."}], ["job.email.welcome", "job.email."], ["job.reward.deliver", None, 7]),
    ([{"suffix": ".deliver"}], ["job.reward.deliver"], ["deliver.job"]),
    (["a", {"prefix": "b"}], ["a", "bc"], ["c"]),
]


def passes(pattern: Any, value: Any) -> bool:
    return KafkaFilter([{"value": pattern}]).passes(json.dumps(value).encode())


@pytest.mark.parametrize(("rule", "matching", "others"), DOCUMENTED_RULES)
def test_a_rule_matches_what_lambda_documents(
    rule: list[Any], matching: list[Any], others: list[Any]
) -> None:
    for value in matching:
        assert passes({"field": rule}, {"field": value}), value
    for value in others:
        assert not passes({"field": rule}, {"field": value}), value


def test_a_missing_key_matches_only_exists_false() -> None:
    assert passes({"field": [{"exists": False}]}, {"other": 1})
    for rule in ({"exists": True}, {"anything-but": ["a"]}, None, "a"):
        assert not passes({"field": [rule]}, {"other": 1})


def test_keys_are_anded_alternatives_and_patterns_are_ored() -> None:
    both = {"type": ["a"], "data": {"priority": [{"numeric": [">", 0]}]}}
    assert passes(both, {"type": "a", "data": {"priority": 1}})
    assert not passes(both, {"type": "b", "data": {"priority": 1}})
    assert not passes(both, {"type": "a", "data": {"priority": 0}})
    assert not passes(both, {"type": "a"})
    either = KafkaFilter([{"value": {"type": ["a"]}}, {"value": {"type": ["b"]}}])
    assert [either.passes(json.dumps({"type": name}).encode()) for name in "abc"] == [True, True, False]


def test_arrays_are_flattened_and_one_element_must_match_every_key() -> None:
    pattern = {"type": ["a"], "size": [1]}
    assert passes(pattern, [{"type": "b"}, {"type": "a", "size": 1}])
    assert not passes(pattern, [{"type": "a", "size": 2}, {"type": "b", "size": 1}])
    assert passes({"type": ["a"]}, {"type": ["x", ["a"]]})
    assert not passes({"type": ["a"]}, [])


@pytest.mark.parametrize(
    "value",
    [
        pytest.param(None, id="null"),
        pytest.param(b"", id="empty"),
        pytest.param(b"plain text", id="not JSON"),
        pytest.param(b'{"type": "other"', id="cut off"),
        pytest.param(b'{"type": "\xff"}', id="not UTF-8"),
        pytest.param(json.dumps({"type": "other"}).encode("utf-16"), id="UTF-16"),
        pytest.param(b'{"type": NaN}', id="Python's idea of JSON"),
        pytest.param(b"[" * 200_000, id="too deep to read"),
    ],
)
def test_what_is_not_json_in_utf8_skips_the_filter_and_is_delivered(value: bytes | None) -> None:
    assert KafkaFilter([{"value": {"type": ["a"]}}]).passes(value)


def test_json_that_is_no_object_has_no_such_key() -> None:
    for value in (b"1", b'"a"', b"null", b"true", b"1" * 10_000):
        assert not KafkaFilter([{"value": {"type": ["a"]}}]).passes(value)


def test_without_patterns_everything_passes() -> None:
    assert KafkaFilter([]).passes(b'{"type": "anything"}')


@pytest.mark.parametrize(
    ("patterns", "message"),
    [
        ([{"key": ["a"]}], "'value' alone"),
        ([{"value": {"type": "a"}}], "value.type: 'a'; allowed are a list"),
        ([{"value": {"type": []}}], "value.type: an empty list"),
        ([{"value": {}}], "value: an empty object"),
        ([{"value": {"type": [{"wildcard": "a*"}]}}], "allowed operators are prefix"),
        ([{"value": {"type": [{"exists": "yes"}]}}], "allowed operators"),
        ([{"value": {"type": [{"numeric": [">", "1"]}]}}], "allowed operators"),
        ([{"value": {"type": [{"prefix": "a", "suffix": "b"}]}}], "an object with one of"),
        ([{"value": {"type": ["a"]}}] * 6, "at most 5"),
    ],
)
def test_a_pattern_lambda_would_refuse_is_an_error_that_says_where(patterns: list[Any], message: str) -> None:
    with pytest.raises(InvalidFilterPattern, match=message):
        KafkaFilter(patterns)


SCALARS = st.none() | st.booleans() | st.integers(-3, 3) | st.sampled_from(["", "a", "ab", "b"])
JSON_VALUES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from("xyz"), inner, max_size=3),
    max_leaves=8,
)


@given(st.binary(max_size=40) | st.text(max_size=40).map(lambda text: text.encode("utf-8", "surrogatepass")))
def test_any_bytes_are_decided_and_only_json_can_be_filtered_out(value: bytes) -> None:
    if not KafkaFilter([{"value": {"type": ["a"]}}]).passes(value):
        json.loads(value.decode("utf-8"))


@given(value=SCALARS, refused=st.lists(st.sampled_from(["", "a", "ab", 1, 2]), min_size=1, max_size=3))
def test_anything_but_is_the_opposite_of_equality_where_there_is_one_value(
    value: Any, refused: list[Any]
) -> None:
    document = {"field": value}
    assert passes({"field": [{"anything-but": refused}]}, document) is not passes(
        {"field": refused}, document
    )


@given(value=JSON_VALUES)
def test_exists_true_and_false_divide_every_object(value: Any) -> None:
    document = {"x": value}
    assert passes({"x": [{"exists": True}]}, document) is not passes({"x": [{"exists": False}]}, document)


@given(elements=st.lists(JSON_VALUES, min_size=1, max_size=4), rule=st.lists(SCALARS, min_size=1, max_size=3))
def test_an_array_matches_if_and_only_if_one_of_its_elements_does(
    elements: list[Any], rule: list[Any]
) -> None:
    pattern = {"x": rule}
    assert passes(pattern, elements) is any(passes(pattern, element) for element in elements)


@given(event_type=st.sampled_from([*catalog.LANE_BY_EVENT_TYPE, "job.unknown", catalog.HEARTBEAT_EVENT_TYPE]))
def test_each_event_type_passes_its_own_lane_alone_and_the_heartbeat_passes_all(event_type: str) -> None:
    value = json.dumps({"type": event_type}).encode()
    passed = set()
    for job_type in catalog.EVENT_JOB_TYPES:
        for lane in job_type.lanes:
            if (pattern := lane.filter_pattern()) is not None and KafkaFilter([pattern]).passes(value):
                passed.add(lane.name)
    if event_type == catalog.HEARTBEAT_EVENT_TYPE:
        assert passed == {"email", "email-bulk", "position", "reward"}
    else:
        owner = catalog.LANE_BY_EVENT_TYPE.get(event_type)
        assert passed == ({owner.name} if owner else set())

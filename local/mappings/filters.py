"""Lambda's filter patterns, as documented for Kafka event-source mappings.

Source: AWS Lambda Developer Guide, "Control which events Lambda sends to your function" (rule syntax) and "Filtering
events from Amazon MSK and self-managed Apache Kafka event sources" (only the `value` key; what cannot be decoded).
"""

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Final

from campaign_jobs.errors import CampaignJobsError

MAX_PATTERNS: Final = 5
"""Lambda's default quota for one mapping."""

Scalar = str | float | bool | None
Node = Callable[[Any], bool]

_COMPARISONS: Final[dict[str, Callable[[float, float], bool]]] = {
    "=": lambda left, right: left == right,
    "<": lambda left, right: left < right,
    "<=": lambda left, right: left <= right,
    ">": lambda left, right: left > right,
    ">=": lambda left, right: left >= right,
}
_OPERATORS: Final = "prefix, suffix, equals-ignore-case, anything-but, exists, numeric"
# Stands for a key that is not there; an empty list says the same: it holds no value.
_ABSENT: Final[list[Any]] = []


class InvalidFilterPattern(CampaignJobsError):
    """A filter pattern breaks Lambda's rules; the message says where, and what is allowed."""


class KafkaFilter:
    """Decides which records of a topic a mapping delivers. Patterns are ORed."""

    def __init__(self, patterns: Sequence[Mapping[str, Any]]) -> None:
        """Raises InvalidFilterPattern."""
        if len(patterns) > MAX_PATTERNS:
            raise InvalidFilterPattern(f"{len(patterns)} patterns; allowed are at most {MAX_PATTERNS}")
        for pattern in patterns:
            if set(pattern) != {"value"}:
                raise InvalidFilterPattern(f"keys {sorted(pattern)}: Kafka mappings filter on 'value' alone")
        self._matchers = [_compile(pattern["value"], "value") for pattern in patterns]

    def passes(self, value: bytes | None) -> bool:
        """Whether a record with this value is delivered.

        What is not JSON in UTF-8 cannot be filtered on its value, the only key there is, so it is delivered.
        """
        if not self._matchers:
            return True
        try:
            decoded = _decode(value)
        except (ValueError, RecursionError):
            return True
        return any(matches(decoded) for matches in self._matchers)


def _decode(value: bytes | None) -> Any:
    if value is None:
        raise ValueError("no value")
    return _DECODER.decode(value.decode("utf-8"))


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")


# Numbers only need comparing, and Python refuses to read very long integers.
_DECODER: Final = json.JSONDecoder(parse_int=float, parse_constant=_refuse_constant)


def _compile(pattern: Any, path: str) -> Node:
    if isinstance(pattern, Mapping):
        if not pattern:
            raise InvalidFilterPattern(
                f"{path}: an empty object; allowed are keys with a list or an object each"
            )
        return _object({key: _compile(inner, f"{path}.{key}") for key, inner in pattern.items()})
    if isinstance(pattern, list | tuple):
        if not pattern:
            raise InvalidFilterPattern(f"{path}: an empty list; allowed is at least one alternative")
        return _leaf([_alternative(item, path) for item in pattern])
    raise InvalidFilterPattern(f"{path}: {pattern!r}; allowed are a list of alternatives or an object")


def _object(keys: dict[str, Node]) -> Node:
    def matches(value: Any) -> bool:
        # Arrays are flattened: one element has to match every key. What has no keys may match `exists: false`.
        objects = [item for item in _flatten(value) if isinstance(item, dict)] or [{}]
        return any(all(node(item.get(key, _ABSENT)) for key, node in keys.items()) for item in objects)

    return matches


def _leaf(alternatives: list[Callable[[list[Scalar]], bool]]) -> Node:
    def matches(value: Any) -> bool:
        scalars = [item for item in _flatten(value) if not isinstance(item, dict)]
        return any(alternative(scalars) for alternative in alternatives)

    return matches


def _flatten(value: Any) -> Iterable[Any]:
    """The elements of an array and of the arrays inside it, in order; any other value alone."""
    waiting = [value]
    while waiting:
        item = waiting.pop()
        if isinstance(item, list):
            waiting.extend(reversed(item))
        else:
            yield item


def _alternative(rule: Any, path: str) -> Callable[[list[Scalar]], bool]:
    """One item of a leaf's list: a value to equal, or an object with one operator."""
    if rule is None or isinstance(rule, str | int | float):
        return lambda scalars: any(_equal(scalar, rule) for scalar in scalars)
    if not isinstance(rule, Mapping) or len(rule) != 1:
        raise InvalidFilterPattern(
            f"{path}: {rule!r}; allowed are a value or an object with one of {_OPERATORS}"
        )
    ((operator, operand),) = rule.items()
    if operator == "exists" and isinstance(operand, bool):
        return lambda scalars: bool(scalars) is operand
    test = _operator(operator, operand)
    if test is None:
        raise InvalidFilterPattern(
            f"{path}: {rule!r}; allowed operators are {_OPERATORS}, each with a fitting operand"
        )
    return lambda scalars: any(test(scalar) for scalar in scalars)


def _operator(operator: str, operand: Any) -> Callable[[Scalar], bool] | None:
    """The test of one value, or None where Lambda knows no such operator or operand."""
    if operator == "anything-but":
        refused = operand if isinstance(operand, list | tuple) else [operand]
        if refused and all(isinstance(item, str | int | float) for item in refused):
            return lambda scalar: not any(_equal(scalar, item) for item in refused)
    elif operator == "numeric":
        return _numeric(operand)
    elif isinstance(operand, str):
        if operator == "prefix":
            return lambda scalar: isinstance(scalar, str) and scalar.startswith(operand)
        if operator == "suffix":
            return lambda scalar: isinstance(scalar, str) and scalar.endswith(operand)
        if operator == "equals-ignore-case":
            return lambda scalar: isinstance(scalar, str) and scalar.casefold() == operand.casefold()
    return None


def _numeric(operand: Any) -> Callable[[Scalar], bool] | None:
    """`[">", 0, "<=", 5]`: one comparison, or the two ends of a range."""
    if not isinstance(operand, list | tuple) or len(operand) not in (2, 4):
        return None
    comparisons = []
    for name, bound in zip(operand[::2], operand[1::2], strict=True):
        if name not in _COMPARISONS or not _is_number(bound):
            return None
        comparisons.append((_COMPARISONS[name], bound))

    def matches(scalar: Scalar) -> bool:
        if not _is_number(scalar):
            return False
        return all(compare(scalar, bound) for compare, bound in comparisons)  # type: ignore[arg-type]

    return matches


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _equal(left: Scalar, right: Scalar) -> bool:
    # Python holds True and 1 for equal; JSON does not.
    return isinstance(left, bool) == isinstance(right, bool) and left == right

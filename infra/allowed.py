"""What settings are checked by."""

import re
from collections.abc import Callable, Iterator
from ipaddress import IPv4Network
from typing import Any, TypeAlias

Wrong: TypeAlias = Iterator[tuple[str, object, str]]
"""For each setting that is wrong: its name, its value, and what is allowed."""


def is_share(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 < value <= 1


def checked(of: object, **checks: tuple[Any, str]) -> Wrong:
    for setting, (fine, allowed) in checks.items():
        if not fine:
            yield setting, getattr(of, setting), allowed


def matches(pattern: str | re.Pattern[str], value: object) -> bool:
    return isinstance(value, str) and re.fullmatch(pattern, value) is not None


def all_match(pattern: str, values: tuple[str, ...]) -> bool:
    return all(matches(pattern, value) for value in values)


def whole(value: object, low: int, high: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and low <= value <= high


def private_sixteen(value: object) -> bool:
    try:
        network = IPv4Network(value) if isinstance(value, str) else None
    except ValueError:
        return False
    # Written as CloudFormation wants it, not with a netmask.
    return network is not None and str(network) == value and network.prefixlen == 16 and network.is_private


def half_steps(value: object) -> bool:
    return (
        isinstance(value, int | float)
        and not isinstance(value, bool)
        and 0.5 <= value <= 256
        and (value * 2) % 1 == 0
    )


def parses(parse: Callable[[str], object], value: object) -> bool:
    try:
        parse(str(value))
    except ValueError:
        return False
    return isinstance(value, str)

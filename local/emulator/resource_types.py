"""The list of resource types, resource_types.toml, as it is read by the emulator and by the deployment's test."""

import tomllib
from collections.abc import Iterable
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Final

_LIST: Final = Path(__file__).with_suffix(".toml")


def listed() -> dict[str, dict[str, str]]:
    """By `handled` and `faked`: each resource type with what the emulator makes of it."""
    return tomllib.loads(_LIST.read_text(encoding="utf-8"))


def unknown(resource_types: Iterable[str]) -> set[str]:
    """Those that stand nowhere in the list."""
    patterns = [pattern for types in listed().values() for pattern in types]
    return {each for each in resource_types if not any(fnmatchcase(each, pattern) for pattern in patterns)}

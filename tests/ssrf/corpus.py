"""Reads `corpus.toml`."""

import tomllib
from functools import cache
from pathlib import Path
from typing import Any


@cache
def _corpus() -> dict[str, list[dict[str, Any]]]:
    return tomllib.loads((Path(__file__).parent / "corpus.toml").read_text(encoding="utf-8"))


def entries(kind: str) -> list[dict[str, Any]]:
    """All entries of a kind, such as `url`; see the head of the file."""
    return _corpus()[kind]


def named(entry: dict[str, Any]) -> str:
    """For a test's id."""
    return str(entry["why"])

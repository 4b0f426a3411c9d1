"""The list of guards: the TOML files of this directory."""

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

PACKAGE: Final = Path("layers/campaign_jobs/python/campaign_jobs")


@dataclass(frozen=True)
class Mutant:
    """One guard, and how to remove it."""

    name: str
    guarantee: str
    """What is lost with the guard."""
    path: Path
    """The file it stands in, from the repository's root."""
    text: str
    replacement: str
    tests: tuple[str, ...]
    """Node ids, from the repository's root; one of them must fail without the guard."""
    listed_in: str


def read_all() -> list[Mutant]:
    """All mutants, in the order of the files and in theirs. Raises ValueError where a name stands twice."""
    mutants = [
        _mutant(entry, path.name)
        for path in sorted(Path(__file__).parent.glob("*.toml"))
        for entry in tomllib.loads(path.read_text())["mutant"]
    ]
    names = [mutant.name for mutant in mutants]
    if twice := {name for name in names if names.count(name) > 1}:
        raise ValueError(f"these names stand twice: {', '.join(sorted(twice))}")
    return mutants


def _mutant(entry: Mapping[str, Any], listed_in: str) -> Mutant:
    inside, outside = entry.get("file"), entry.get("outside_file")
    return Mutant(
        name=entry["name"],
        guarantee=entry["guarantee"],
        path=PACKAGE / inside if inside else Path(outside),
        text=entry["text"],
        replacement=entry["replacement"],
        tests=tuple(f"tests/{test}" for test in entry["tests"]),
        listed_in=listed_in,
    )

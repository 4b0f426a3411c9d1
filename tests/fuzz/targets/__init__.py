"""What parses bytes from outside: a module each, whose `run` takes any bytes and states what must hold of them.

`run` raises AssertionError when the property does not hold; whatever else comes out of it is a finding too. Both the
property tests (`test_targets.py`) and `make fuzz` use these, and the inputs in `corpus/<target>/`.
"""

from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Final

NAMES: Final = (
    "records",
    "bodies",
    "ses_events",
    "urls",
    "responses",
    "templates",
    "settings",
    "backfills",
    "tokens",
    "asynq_messages",
)
CORPUS: Final = Path(__file__).resolve().parent.parent / "corpus"

Target = Callable[[bytes], None]


def load(name: str) -> Target:
    target: Target = import_module(f"{__name__}.{name}").run
    return target


def corpus(name: str) -> list[Path]:
    return sorted((CORPUS / name).iterdir())


def size_limit(name: str) -> int:
    """The longest input that is tried; a template of that size still renders quickly."""
    return 1_000 if name == "templates" else 4_000

"""The page of guarantees names tests that exist, and every guarantee has some."""

import re
from pathlib import Path


def test_every_guarantee_names_tests_that_are_there(repository: Path) -> None:
    text = (repository / "docs" / "guarantees.md").read_text(encoding="utf-8")
    sections = re.split(r"^## ", text, flags=re.MULTILINE)[1:]
    numbered = [section for section in sections if re.match(r"[0-9]+\.", section)]
    assert [section.partition(".")[0] for section in numbered] == [str(number) for number in range(1, 10)]
    for section in numbered:
        named = re.findall(r"`(tests/[\w/]+\.py)`", section)
        assert named, section.splitlines()[0]
        assert [path for path in named if not (repository / path).exists()] == []
        assert "**Not promised.**" in section

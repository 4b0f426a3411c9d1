"""docs/event-source-mappings.md says what the stand-ins for Lambda's event sources promise, and which tests hold it."""

import ast
import re
from itertools import pairwise
from pathlib import Path

SUITES = {
    "F": "unit/test_filters.py",
    "K": "integration/test_kafka_mapping.py",
    "S": "integration/test_sqs_mapping.py",
    "E": "integration/test_schedules.py",
    "C": "integration/test_local_control.py",
}


def lines(repository: Path) -> dict[tuple[str, int], list[str]]:
    """By letter and number of each line, its other cells: promise, source, tests."""
    text = (repository / "docs/event-source-mappings.md").read_text(encoding="utf-8")
    rows = [
        [cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if "|" in line
    ]
    numbered = [row for row in rows if re.fullmatch(r"[A-Z]\d+", row[0])]
    found = {(row[0][0], int(row[0][1:])): row[1:] for row in numbered}
    assert len(found) == len(numbered), "a number is given twice"
    return found


def names_of_tests(repository: Path, letter: str) -> set[str]:
    module = ast.parse((repository / "tests" / SUITES[letter]).read_text(encoding="utf-8"))
    return {
        node.name
        for node in module.body
        if isinstance(node, ast.FunctionDef) and node.name.startswith("test_")
    }


def test_every_line_is_numbered_and_says_what_is_promised_and_who_asks_for_it(repository: Path) -> None:
    found = lines(repository)
    assert {letter for letter, _ in found} == set(SUITES)
    for (letter, number), (next_letter, next_number) in pairwise(found):
        assert (next_letter, next_number) == (letter, number + 1) or next_number == 1
    legend = (repository / "docs/event-source-mappings.md").read_text(encoding="utf-8").split("\n## ")[0]
    pages = {
        page
        for entry in re.findall(r"^- (.*?):", legend, re.MULTILINE)
        for page in re.findall(r"\*\*(.+?)\*\*", entry)
    }
    for place, (promise, source, _) in found.items():
        assert promise.endswith((".", ".)")), place
        named = {re.sub(r" \(.*\)", "", name) for name in source.split(", ")}
        assert named and named <= pages | {"*Ours*"}, place


def test_every_line_names_tests_and_every_test_is_named_by_a_line(repository: Path) -> None:
    found = lines(repository)
    for letter, suite in SUITES.items():
        named: set[str] = set()
        for (other, number), (_, _, tests) in found.items():
            if other == letter:
                assert re.findall(r"`(\w+)`", tests), f"{letter}{number} names no test"
                named |= set(re.findall(r"`(\w+)`", tests))
        assert named - names_of_tests(repository, letter) == set(), f"no such tests in {suite}"
        assert names_of_tests(repository, letter) - named == set(), f"{suite} holds what no line promises"

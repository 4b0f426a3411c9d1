"""Each mutant still stands where its code does, and names tests that are there; `make mutants` runs them."""

from pathlib import Path

import pytest

from tests.mutants.guards import Mutant, read_all


@pytest.mark.parametrize("mutant", read_all(), ids=lambda mutant: mutant.name)
def test_a_mutant_keeps_up_with_the_code(mutant: Mutant, repository: Path) -> None:
    assert (repository / mutant.path).read_text(encoding="utf-8").count(mutant.text) == 1
    for test in mutant.tests:
        path, *names = test.partition("[")[0].split("::")
        source = (repository / path).read_text(encoding="utf-8") if (repository / path).is_file() else ""
        assert (repository / path).exists(), test
        assert all(f"def {name}(" in source or f"class {name}" in source for name in names), test

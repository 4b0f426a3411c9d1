"""The README's table of settings is complete and true."""

import re
from pathlib import Path

from campaign_jobs.settings import BY_FUNCTION


def test_every_setting_is_in_the_readme_and_nothing_else(repository: Path) -> None:
    text = (repository / "README.md").read_text(encoding="utf-8")
    table = text.split("## Settings")[1].split("\n## ")[0]
    first_cells = [line.split("|")[1] for line in table.splitlines() if line.startswith("| `")]
    named = set(re.findall(r"`([A-Z_]+)`", " ".join(first_cells)))
    assert named == {name for settings in BY_FUNCTION.values() for name in settings.environment_names()}


def test_every_file_that_the_readme_links_to_is_there(repository: Path) -> None:
    text = (repository / "README.md").read_text(encoding="utf-8")
    links = [link for link in re.findall(r"\]\(([^)#]+)\)", text) if "://" not in link]
    assert links
    assert [link for link in links if not (repository / link).exists()] == []

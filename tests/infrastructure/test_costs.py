"""The table of costs in the guide is what the templates say."""

from pathlib import Path

from infra import costs, environments
from tests.infrastructure.synthesis import Synthesis


def test_the_guide_s_table_is_that_of_the_template(synthesis: Synthesis, repository: Path) -> None:
    guide = (repository / "docs/deploying.md").read_text()
    shown = guide.partition("<!-- costs: begin -->\n")[2].partition("<!-- costs: end -->")[0]
    wanted = costs.table({synthesis.environment.name: synthesis.template})
    assert wanted in shown, f"write the table of `python -m infra.costs` into docs/deploying.md:\n{wanted}"


def test_dev_costs_less_than_130_dollars_a_month(dev: Synthesis) -> None:
    assert dev.environment == environments.DEV
    assert sum(item.month for item in costs.items(dev.template)) < 130

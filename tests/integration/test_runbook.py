"""What the runbook tells people to ask the database can be asked."""

import re
from pathlib import Path

from campaign_jobs.database.connection import Connection


def test_every_statement_of_the_runbook_runs(connection: Connection, repository: Path) -> None:
    text = (repository / "docs" / "runbook.md").read_text(encoding="utf-8")
    blocks = re.findall(r"```sql\n(.*?)```", text, flags=re.DOTALL)
    statements = [statement for block in blocks for statement in block.split(";") if statement.strip()]
    statements += re.findall(r"`(SELECT [^`]+)`", text)
    assert len(statements) == 6
    for statement in statements:
        connection.execute(statement.encode())

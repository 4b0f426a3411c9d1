"""What every command is given: the environment that it works on, and where its words go."""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Annotated

import typer

from campaign_jobs_cli import targets
from campaign_jobs_cli.output import Output


@dataclass
class Session:
    environment: str
    directory: Path
    output: Output

    @cached_property
    def target(self) -> targets.Target:
        """Found when first asked for. Raises NotFound or Unreachable."""
        return targets.find(self.environment, directory=self.directory)


def of(context: typer.Context) -> Session:
    """The session of a command's context."""
    session: Session = context.obj
    return session


Yes = Annotated[bool, typer.Option("--yes", "-y", help="Do it without asking.")]
"""The option of every command that changes something."""

"""Keeping dead letters in a file before they are thrown away."""

import json
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from campaign_jobs_cli.dead_letters.letters import Letter
from campaign_jobs_cli.errors import WrongInput


@contextmanager
def saving(file: Path | None) -> Iterator[Callable[[Sequence[Letter]], None]]:
    """What writes letters so that they outlast a crash. Raises WrongInput where the file is there, or cannot be."""
    if file is None:
        yield lambda _: None
        return
    try:
        opened: IO[str] = file.open("x", encoding="utf-8")
    except FileExistsError:
        raise WrongInput(f"--save {file}: it is there already; name a new file") from None
    except OSError as error:
        raise WrongInput(f"--save {file}: {error.strerror}") from error
    with opened:

        def write(letters: Sequence[Letter]) -> None:
            for letter in letters:
                line: dict[str, Any] = {
                    "job_type": letter.job_type,
                    "at": letter.at.isoformat(),
                    "reason": letter.reason,
                    "body": letter.body,
                }
                opened.write(json.dumps(line) + "\n")
            opened.flush()
            os.fsync(opened.fileno())

        yield write

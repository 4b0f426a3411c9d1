"""Shows that the launch goes on: a spinner in a terminal, plain lines elsewhere."""

import time

from rich.console import Console
from rich.status import Status


class LaunchProgress:
    """One line for each moment, and what is still under way."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._status: Status | None = None
        self._title = ""
        self._started = 0.0
        self._looked_at = 0.0

    def say(self, message: str) -> None:
        self._console.print(message, markup=False, soft_wrap=True)

    def moment(self, title: str) -> None:
        self.end()
        self._title, self._started = title, time.monotonic()
        self._looked_at = self._started
        if self._console.is_terminal:
            self._status = self._console.status(f"{title} ...")
            self._status.start()
        else:
            self.say(f"{title} ...")

    def waiting(self, unfinished: dict[str, int]) -> None:
        text = ", ".join(f"{name} {count}" for name, count in unfinished.items()) or "nothing more"
        if self._status is not None:
            self._status.update(f"{self._title} ... under way: {text}")
        elif time.monotonic() - self._looked_at >= 5:
            self._looked_at = time.monotonic()
            self.say(f"  under way: {text}")

    def quiet(self) -> None:
        self.end()
        self.say(f"  {self._title}: done in {time.monotonic() - self._started:.1f} s")

    def end(self) -> None:
        """Leave the terminal as it was."""
        if self._status is not None:
            self._status.stop()
            self._status = None

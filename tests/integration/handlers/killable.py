"""The handler of the function that KILLABLE names, but a record whose value names a manner ends the process.

Each time, it first adds a line to the file that KILLED names.
"""

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

from campaign_jobs import events
from local.functions import REPOSITORY
from local.runtime import load_handler


def take_memory() -> None:
    kept = []
    while True:
        kept.append(b"x" * 2**23)
        time.sleep(0.005)


MANNERS: dict[bytes, Callable[[], object]] = {
    b"die by os._exit": lambda: os._exit(3),
    b"die by SIGKILL": lambda: os.kill(os.getpid(), signal.SIGKILL),
    b"die by a hang": lambda: time.sleep(600),
    b"die by memory": take_memory,
}
read_object = events.read_object


def read_object_or_die(value: bytes | None) -> object:
    for manner, end in MANNERS.items():
        if manner in (value or b""):
            with Path(os.environ["KILLED"]).open("a") as file:
                file.write("killed\n")
            end()
    return read_object(value)


events.read_object = read_object_or_die  # type: ignore[assignment]
name = os.environ["KILLABLE"]
handler = load_handler(name, REPOSITORY / "functions" / name / "handler.py")

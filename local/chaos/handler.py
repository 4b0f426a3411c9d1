"""The real handler of whichever function this is, in which a record that says so ends the process.

A chaos run has it in place of the deployed handlers. What it ends by, and whether it was alone, goes to the log first.
"""

import json
import os
import time
from collections.abc import Callable, Mapping
from typing import Any, Final

from campaign_jobs import events
from local.functions import REPOSITORY
from local.runtime import load_handler

FUNCTION: Final = os.environ["AWS_LAMBDA_FUNCTION_NAME"].rpartition("campaign-jobs-local-")[2]
_MEBIBYTES_AT_ONCE: Final = 8

_real_handler = load_handler(FUNCTION, REPOSITORY / "functions" / FUNCTION / "handler.py")
_real_read_object = events.read_object
_alone = False


def take_memory() -> None:
    """More and more of it, until the environment ends us; twice the limit at most, where nobody looks."""
    limit = int(os.environ["AWS_LAMBDA_FUNCTION_MEMORY_SIZE"])
    taken: list[bytes] = []
    while len(taken) * _MEBIBYTES_AT_ONCE < 2 * limit:
        taken.append(b"x" * (_MEBIBYTES_AT_ONCE * 2**20))
        time.sleep(0.005)
    os._exit(1)


MANNERS: Final[Mapping[str, Callable[[], None]]] = {
    "crash": lambda: os._exit(1),
    "hang": lambda: time.sleep(3_600),
    "memory": take_memory,
}


def read_object(value: bytes | None) -> dict[str, Any]:
    """As the contract reads it; then the end, where the record asks this function for one."""
    decoded = _real_read_object(value)
    wanted = decoded.get("chaos")
    if isinstance(wanted, dict) and wanted.get("function") == FUNCTION:
        line = {"message": "ended by a record", "event_id": decoded["id"], "alone": _alone}
        print(json.dumps(line), flush=True)
        MANNERS[wanted["manner"]]()
    return decoded


# The pipeline asks the module for it at each record.
events.read_object = read_object


def handler(event: Any, context: Any) -> Any:
    global _alone  # noqa: PLW0603  One invocation at a time.
    _alone = isinstance(event, dict) and "Records" in event
    return _real_handler(event, context)

"""Receivers of webhooks: one works, one fails the first time, one hangs the first time, one is gone for a while."""

import threading
import time
from pathlib import Path
from typing import Final

from campaign_jobs.reward.webhooks.client import TOTAL_SECONDS
from local.demo.receiver import WebhookReceiver

METHODS: Final = ("working", "flaky", "hanging", "gone")


class ChaosReceiver(WebhookReceiver):
    """`back` is set once the endpoint that has gone takes webhooks again, and `calm` once none fails any more.

    An endpoint rests longer with each failure in a row, and one that goes on failing each delivery's first try would
    rest for an hour in the end.
    """

    endpoints = METHODS

    def __init__(self, directory: Path) -> None:
        super().__init__(directory)
        self.back = threading.Event()
        self.calm = threading.Event()

    def status_of(self, endpoint: str, tries: int) -> int:
        fails_first = tries == 1 and not self.calm.is_set()
        if endpoint == "hanging" and fails_first:
            time.sleep(TOTAL_SECONDS + 5)
        if endpoint == "gone" and not self.back.is_set():
            return 410
        return 500 if endpoint == "flaky" and fails_first else 200

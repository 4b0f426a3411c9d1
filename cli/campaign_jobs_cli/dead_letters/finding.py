"""Dead letters of several queues at once."""

import threading
from concurrent.futures import ThreadPoolExecutor

from campaign_jobs_cli.dead_letters.letters import Filter, Found, Letter
from campaign_jobs_cli.dead_letters.queue import reading
from campaign_jobs_cli.output import Advance
from campaign_jobs_cli.selection import RewardOwners
from campaign_jobs_cli.session import Session


def find(opened: Session, wanted: Filter) -> Found:
    """Read the queues, side by side, because each is waited for. Nothing is changed."""
    target, output = opened.target, opened.output
    target.client("sqs")  # Before the threads, which must not make it at once.
    stopping = threading.Event()

    def read(job_type: str, advance: Advance) -> list[Letter]:
        found: list[Letter] = []
        with reading(target, job_type) as queue:
            for letters in queue.batches():
                found += letters
                advance(len(letters))
                if stopping.is_set():
                    break
        if queue.cut:
            output.note(f"{job_type}: SQS shows no more than {queue.seen} at a time.")
        return found

    with output.progress("Reading dead letters") as advance, ThreadPoolExecutor() as pool:
        try:
            futures = [pool.submit(read, job_type, advance) for job_type in wanted.job_types]
            letters = [letter for future in futures for letter in future.result()]
        finally:
            stopping.set()
    found = Found()
    found.add(wanted.chosen(letters, RewardOwners(target)))
    return found

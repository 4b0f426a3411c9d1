"""The move: takes what has an event, publishes it, finishes it; until nothing is left, or for as long as one likes.

A crash at any point loses nothing. Before the events are acknowledged the tasks are in Asynq, held by a lease that runs
out; after it, whoever takes them up again publishes them under the same ids, by which a job is done once.
"""

import threading
import time
from collections import Counter
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from functools import partial
from typing import Final

from campaign_jobs import events
from campaign_jobs.errors import PublishError
from campaign_jobs.producer import EventProducer
from campaign_jobs_cli.asynq.deciding import Fate, Kind, fate, fate_of_active
from campaign_jobs_cli.asynq.errors import NotPaused, WorkersRunning
from campaign_jobs_cli.asynq.holding import LEASE_SECONDS, Batch, Holder
from campaign_jobs_cli.asynq.mapping import Becomes, TaskMapping
from campaign_jobs_cli.asynq.queues import AsynqRedis, Client, State, Task

BATCH: Final = 100
"""Tasks taken at a time: as many as Asynq's own scripts move in one go, so that none holds up Redis for long."""
LOOK_AGAIN_SECONDS: Final = 1.0
SEARCH_AGAIN_SECONDS: Final = 60.0

Wanted = list[tuple[Task, Becomes | None]]
"""Tasks to take, with the event that each becomes, None where it is dropped."""


@dataclass
class Totals:
    """What a move has done so far, by queue, task type and event type."""

    moved: Counter[tuple[str, str, str]] = field(default_factory=Counter)
    dropped: Counter[tuple[str, str]] = field(default_factory=Counter)

    @property
    def settled(self) -> int:
        return self.moved.total() + self.dropped.total()


class Mover:
    """Moves the tasks of some queues. One at a time is best: several do no harm, and publish some events twice."""

    def __init__(
        self,
        client: Client,
        producer: EventProducer,
        mapping: TaskMapping,
        queues: Sequence[str],
        *,
        lease_seconds: int = LEASE_SECONDS,
        batch: int = BATCH,
        on_progress: Callable[[Totals], None] = lambda _: None,
        on_new_queue: Callable[[str], None] | None = None,
    ) -> None:
        """With `on_new_queue`, which is told the name, `follow` takes on queues that come into being later."""
        self.totals = Totals()
        self._redis = AsynqRedis(client)
        self._holder = Holder(client, lease_seconds=lease_seconds)
        self._producer = producer
        self._mapping = mapping
        self.queues = list(queues)
        """Those that are moved; `follow` may add to them."""
        self._new: list[str] = []
        """Paused, but old workers may still be at work on them."""
        self._extend_every = lease_seconds / 6
        self._batch = batch
        self._on_progress = on_progress
        self._on_new_queue = on_new_queue
        self._stopping = threading.Event()
        self._served: set[str] = set()
        """The queues that have a server of Asynq's, which takes back what its workers have left."""

    def stop(self) -> None:
        """End after the batch in hand; from a signal handler, or another thread."""
        self._stopping.set()

    def prepare(self, *, wait_seconds: float) -> None:
        """Keep old workers from taking tasks, and wait until they have ended those that they are at work on.

        Raises WorkersRunning where they have not after `wait_seconds`; the queues stay paused, then and afterwards.
        Raises PublishError where Kafka does not answer; nothing has been changed then.
        """
        self._producer.publish([])
        for queue in self.queues:
            self._redis.pause(queue)
        waited = 0.0
        self._look_for_servers()
        while running := self._running():
            if waited >= wait_seconds or self._stopping.is_set():
                raise WorkersRunning(
                    f"old workers are still at work on {_listed(running)}, so nothing was moved. The queues are "
                    "paused: run the move again when the workers have ended them, or give the queues back with "
                    "`campaign-jobs asynq resume`"
                )
            self._stopping.wait(LOOK_AGAIN_SECONDS)
            waited += LOOK_AGAIN_SECONDS
            self._look_for_servers()

    def run(self) -> None:
        """Move all that can be moved now, those included that an earlier move was stopped with.

        Raises NotPaused, WorkersRunning, PublishError and RedisTrouble; nothing is lost, and a further run goes on.
        """
        while not self._stopping.is_set():
            before = self.totals.settled
            self._pass(searching=True)
            if self.totals.settled == before and not self._anything_held():
                return
            if self.totals.settled == before:
                # Of a move that was stopped; its lease runs out within seconds.
                self._stopping.wait(LOOK_AGAIN_SECONDS)

    def follow(self) -> None:
        """The same, and go on with what old producers write and what becomes due, until `stop`."""
        search_at = time.monotonic()
        while not self._stopping.is_set():
            before, started = self.totals.settled, time.monotonic()
            self._take_on_new_queues()
            self._pass(searching=started >= search_at)
            if started >= search_at:
                search_at = started + SEARCH_AGAIN_SECONDS
            if self.totals.settled == before:
                # Where much stays, looking through it takes half of the time at most.
                self._stopping.wait(max(LOOK_AGAIN_SECONDS, time.monotonic() - started))

    def _take_on_new_queues(self) -> None:
        """A producer may write to a queue that nobody has written to before. It is moved once no worker is at it."""
        if self._on_new_queue is None:
            return
        for queue in self._redis.queues():
            if queue not in self.queues and queue not in self._new:
                self._redis.pause(queue)
                self._new.append(queue)
                self._on_new_queue(queue)
        if self._new:
            self._look_for_servers()
        for queue in [queue for queue in self._new if not self._running(queue)]:
            self._new.remove(queue)
            self.queues.append(queue)

    def _pass(self, *, searching: bool) -> None:
        """Go through all queues once, a batch of each in turn, so that none waits for a long one.

        `searching` looks for what Asynq has taken from a stopped move as well.
        """
        self._look_for_servers()
        for queue in self.queues:
            self._check(queue)
        walks = {queue: self._walk(queue, searching=searching) for queue in self.queues}
        left: dict[str, int | None] = dict.fromkeys(walks)
        while left and not self._stopping.is_set():
            for queue, settled in list(left.items()):
                try:
                    wanted = next(walks[queue]) if settled is None else walks[queue].send(settled)
                except StopIteration:
                    del left[queue]
                    continue
                left[queue] = self._settle(queue, wanted) if wanted else 0

    def _look_for_servers(self) -> None:
        self._served = {queue for server in self._redis.servers() for queue in server.queues}

    def _check(self, queue: str) -> None:
        """What `prepare` has brought about must hold. (Whether it is paused, each taking asks again.)"""
        if not self._redis.is_paused(queue):
            raise NotPaused(
                f"queue {queue} is not paused any more, so old workers take its tasks. Run the move again: it pauses "
                "the queue and waits for the workers"
            )
        if running := self._running(queue):
            raise WorkersRunning(
                f"an old worker has begun {_listed(running)}: was the queue resumed for a moment?"
            )

    def _walk(self, queue: str, *, searching: bool) -> Generator[Wanted, int, None]:
        """What is wanted of the queue's tasks, page by page; sent how many of a page have left their place."""
        redis, now = self._redis, self._redis.now(queue)
        yield self._wanted(self._active(queue))

        def walk(
            read: Callable[[int, int], list[Task]], *, interrupted: bool = False
        ) -> Generator[Wanted, int, None]:
            skipped = 0
            while page := read(skipped, self._batch):
                gone = yield self._wanted(
                    [
                        (task, fate(task, self._mapping, now))
                        for task in page
                        if task.interrupted or not interrupted
                    ]
                )
                skipped += len(page) - gone

        yield from walk(partial(redis.by_time, queue, State.SCHEDULED, until=now))
        yield from walk(partial(redis.by_time, queue, State.RETRY, until=now))
        yield from walk(partial(redis.pending, queue))
        if searching:
            # Of these nothing else is moved, and there may be many.
            yield from walk(partial(redis.by_time, queue, State.RETRY, after=now), interrupted=True)
            yield from walk(partial(redis.by_time, queue, State.ARCHIVED), interrupted=True)

    @staticmethod
    def _wanted(decided: Sequence[tuple[Task, Fate]]) -> Wanted:
        return [
            (task, fate.becomes if isinstance(fate.becomes, Becomes) else None)
            for task, fate in decided
            if fate.is_wanted
        ]

    def _settle(self, queue: str, wanted: Wanted) -> int:
        """Take, publish, finish. How many tasks have left their place."""
        becomes = {task.id: event for task, event in wanted}
        batch = self._holder.take(
            queue, [task for task, _ in wanted], abandoned_by_workers=queue not in self._served
        )
        taken = len(batch.held)
        if batch.held:
            self._publish(batch, becomes)
        return taken

    def _publish(self, batch: Batch, becomes: dict[str, Becomes | None]) -> None:
        ids = [task_id for task_id in batch.held if becomes[task_id] is not None]
        messages = []
        for task_id in ids:
            taken, becoming = batch.held[task_id], becomes[task_id]
            assert becoming is not None
            event = becoming.event(taken.event_id, taken.asked_at)
            messages.append((events.partition_key(event), events.as_value(event)))
        failed: PublishError | None = None
        try:
            self._wait_for(self._producer.submit(messages), batch)
        except PublishError as error:
            failed = error
        lost = {ids[position] for position in failed.unacknowledged} if failed else set()
        self._finish(batch, [task_id for task_id in batch.held if task_id not in lost], becomes)
        if failed:
            self._holder.hand_back(
                batch, [task_id for task_id in lost if task_id in batch.held], published=True
            )
            raise failed

    def _wait_for(self, published: "Future[None]", batch: Batch) -> None:
        """Hold the batch until Kafka has acknowledged it. Raises PublishError."""
        while True:
            try:
                published.result(timeout=self._extend_every)
            except TimeoutError:
                self._holder.extend(batch)
            else:
                return

    def _finish(self, batch: Batch, ids: Sequence[str], becomes: dict[str, Becomes | None]) -> None:
        # What is not ours any more is met again, and published under the same id.
        for task_id in self._holder.finish(batch, ids):
            task_type, event = batch.held[task_id].message.type, becomes[task_id]
            if event is None:
                self.totals.dropped[batch.queue, task_type] += 1
            else:
                self.totals.moved[batch.queue, task_type, event.type] += 1
        self._on_progress(self.totals)

    def _active(self, queue: str) -> list[tuple[Task, Fate]]:
        found = self._redis.active(queue)
        if not found:
            return []
        now, is_served = self._redis.now(queue), queue in self._served
        return [
            (task, fate_of_active(task, lease, self._mapping, now, is_served=is_served))
            for task, lease in found
        ]

    def _running(self, *queues: str) -> list[tuple[Task, str | None]]:
        return [
            (task, decided.why)
            for queue in queues or self.queues
            for task, decided in self._active(queue)
            if decided.kind is Kind.RUNS
        ]

    def _anything_held(self) -> bool:
        """Whether another move has tasks, or one that was stopped had them a moment ago."""
        return any(decided.kind is Kind.HELD for queue in self.queues for _, decided in self._active(queue))


def _listed(running: Sequence[tuple[Task, str | None]]) -> str:
    first, why = running[0]
    example = f"{first.type} {first.id} of queue {first.queue}" + (f" ({why})" if why else "")
    return f"{len(running)} tasks, one of them {example}" if len(running) > 1 else f"the task {example}"

"""The function `unroutable` at its boundaries."""

from typing import Any

from campaign_jobs.database.connection import Connection
from tests.crash.scenario import Rest, Scenario, retried

OWNED = {"id": "1", "type": "job.reward.deliver", "data": {}, "timestamp": "2026-03-01T12:00:00Z"}


def _nobodys(_: Connection) -> list[Any]:
    return [b"not JSON", None, {"type": "job.unknown"}, OWNED]


def _three_dead_letters(rest: Rest) -> None:
    assert sorted(rest.outside.dead_letters.values()) == [1, 1, 1]


def _one_dead_letter(rest: Rest) -> None:
    assert list(rest.outside.dead_letters.values()) == [1]


def _handed_on(rest: Rest) -> None:
    assert [queue for queue, _ in rest.outside.waiting] == ["reward-retry"]
    assert not rest.outside.dead_letters


def _scenario(name: str, body: str, expect: Any) -> Scenario:
    return Scenario(
        name=f"unroutable: {name}",
        function="unroutable",
        source="retry queue",
        seed=lambda _: [body],
        expect=expect,
    )


SCENARIOS = [
    Scenario(
        name="unroutable: what nobody owns",
        function="unroutable",
        source="kafka",
        seed=_nobodys,
        expect=_three_dead_letters,
    ),
    _scenario("redriven, and nobody's still", retried({"type": "job.unknown"}), _one_dead_letter),
    _scenario("redriven, and owned by now", retried(OWNED), _handed_on),
    _scenario("an unreadable message", "not one of ours", _one_dead_letter),
]

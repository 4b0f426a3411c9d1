"""A call that does input or output, and that no scenario reaches, is found here before it is found in production."""

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import botocore.session
import pytest
from botocore import xform_name

from tests.crash.boundaries import PACKAGE
from tests.crash.conftest import Stage
from tests.crash.scenarios import SCENARIOS

# What psycopg, sockets, HTTP and Kafka are asked by; and what the package puts around them, so that each caller counts.
_CALLS: Final = frozenset(
    {"execute", "executemany", "copy", "stream", "transaction", "commit", "rollback", "connect"}
    | {"create_connection", "getaddrinfo", "request", "getresponse", "urlopen"}
    | {"produce", "list_topics", "flush"}
    | {"in_batch", "repeat_on_conflict", "enqueue", "enqueue_again", "publish", "send", "post"}
)

ELSEWHERE: Final = {
    "database.batches:in_batch.<locals>.waiting_for_locks": "sets its transaction's time-out, and changes nothing",
    "database.connection:_conninfo_from_secret": "reads the password, and changes nothing",
    "email.unsubscribing.keys:_keys_from_secret": "reads the keys, and changes nothing",
    "database.deployment:put_response": "answers a deployment, see tests/integration/test_deploying_migrations.py",
    "database.migrations.__init__:_alone": "a lock of a deployment's; it ends with the connection",
    "erasing:erase": "an operator's transaction",
    "erasing:erase.<locals>.work": "an operator's transaction",
    "erasing:_erase": "an operator's transaction",
    "erasing:_erase.<locals>.rows": "an operator's transaction",
    "fraud.cases:_decide": "an operator's transaction",
    "fraud.cases:confirm": "an operator's transaction",
    "fraud.cases:dismiss": "an operator's transaction",
    "reward.settlement:deliver_manually": "an operator's transaction",
    "kafka_connection:KafkaConnection.close": "a service's; relay keeps its connection",
    "reward.webhooks.transport:_BoundedSocket.send": "a part of the webhook request",
    "reward.webhooks.transport:_PinnedConnection._connect_to_any": "a part of the webhook request; says nothing yet",
    "producer": "for services, which call it from their own code; relay publishes by JobProducer.submit",
}
"""Calls that no job makes, or that change nothing, by function or module, each with the reason."""


@dataclass(frozen=True)
class Call:
    file: str
    function: str
    first_line: int
    last_line: int
    name: str

    def __str__(self) -> str:
        return f"{self.file}:{self.first_line} {self.name} in {self.function}"

    @property
    def place(self) -> str:
        return f"{_module(self.file)}:{self.function}"


def _module(file: str) -> str:
    return file.removesuffix(".py").replace("/", ".")


def calls_of(file: str, source: str, names: frozenset[str]) -> Iterator[Call]:
    """The calls of these names, with the functions that they are in, named as Python names them at run time."""

    def visit(node: ast.AST, function: str) -> Iterator[Call]:
        for child in ast.iter_child_nodes(node):
            inner = function
            if isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef, ast.Lambda)):
                name = getattr(child, "name", "<lambda>")
                nested = function and not isinstance(node, ast.ClassDef)
                inner = f"{function}{'.<locals>' if nested else ''}.{name}".removeprefix(".")
            if isinstance(child, ast.Call):
                called = (
                    child.func.attr
                    if isinstance(child.func, ast.Attribute)
                    else getattr(child.func, "id", "")
                )
                if called in names:
                    yield Call(file, function, child.lineno, child.end_lineno or child.lineno, called)
            yield from visit(child, inner)

    yield from visit(ast.parse(source), "")


def operations_of_aws(sources: dict[str, str]) -> frozenset[str]:
    """The methods of every AWS service that the package makes a client of."""
    session = botocore.session.Session()
    services = {
        node.args[0].value
        for source in sources.values()
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "boto3.client"
        if isinstance(node.args[0], ast.Constant) and isinstance(node.args[0].value, str)
    }
    assert services >= {"sesv2", "sqs"}
    return frozenset(
        xform_name(operation)
        for service in services
        for operation in session.get_service_model(service).operation_names
    )


@pytest.fixture(scope="module")
def sources() -> dict[str, str]:
    package = Path(PACKAGE)
    return {
        str(path.relative_to(package)): path.read_text(encoding="utf-8") for path in package.rglob("*.py")
    }


@pytest.mark.timeout(600)  # It runs what has not run yet.
def test_every_call_is_stopped_at(sources: dict[str, str], stage: Stage) -> None:
    names = _CALLS | operations_of_aws(sources)
    calls = [call for file, source in sources.items() for call in calls_of(file, source, names)]
    recorded = {scenario.name: stage.undisturbed(scenario).boundaries for scenario in SCENARIOS}
    reached = {
        (file, line)
        for boundaries in recorded.values()
        for item in boundaries
        for file, line in item["lines"]
    }

    unreached = [
        call
        for call in calls
        if not any((call.file, line) in reached for line in range(call.first_line, call.last_line + 1))
    ]
    unexplained = [call for call in unreached if not {call.place, _module(call.file)} & ELSEWHERE.keys()]
    assert not unexplained, "no scenario of tests/crash reaches " + "; ".join(map(str, unexplained))
    explained = {key for call in unreached for key in (call.place, _module(call.file))}
    assert not (stale := ELSEWHERE.keys() - explained), f"stopped at by now, or gone: {stale}"
    print(
        f"{len(SCENARIOS)} scenarios, {sum(map(len, recorded.values()))} boundaries, "
        f"{len(calls) - len(unreached)} of {len(calls)} calls stopped at, the others explained"
    )


def test_calls_are_found_wherever_they_are() -> None:
    source = """
class Job:
    def run(self):
        def work(connection):
            return connection.execute("SELECT 1")
        with self._database.transaction() as connection:
            work(connection)
        in_batch(self._database, [], lambda connection, rows: connection.execute(""))
"""
    found = [call.place for call in calls_of("some/job.py", source, _CALLS)]
    assert sorted(found) == [
        "some.job:Job.run",
        "some.job:Job.run",
        "some.job:Job.run.<locals>.<lambda>",
        "some.job:Job.run.<locals>.work",
    ]

"""An execution environment behaves as Lambda's: a process of its own that crashes and times out alone."""

import json
import os
import signal
import subprocess
import sys
import textwrap
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from local.functions import (
    PYTHON_PATH,
    Function,
    FunctionConfiguration,
    FunctionCrashed,
    FunctionEnvironment,
    FunctionFailed,
    FunctionTimedOut,
)

Make = Callable[..., FunctionEnvironment]


def configuration(tmp_path: Path, code: str, **changes: Any) -> FunctionConfiguration:
    directory = tmp_path / "functions" / "sample"
    directory.mkdir(parents=True, exist_ok=True)
    handler = directory / "handler.py"
    handler.write_text(textwrap.dedent(code), encoding="utf-8")
    values: dict[str, Any] = {
        "timeout_seconds": 30,
        "memory_mb": 256,
        "log_dir": tmp_path / "logs",
        **changes,
    }
    return FunctionConfiguration(name="sample", handler=handler, **values)


@pytest.fixture
def environment(tmp_path: Path) -> Iterator[Make]:
    made: list[FunctionEnvironment] = []

    def make(code: str, **changes: Any) -> FunctionEnvironment:
        made.append(FunctionEnvironment(configuration(tmp_path, code, **changes)))
        return made[-1]

    yield make
    for each in made:
        each.close()


def test_the_first_invocation_starts_it_and_later_ones_find_it_warm(environment: Make) -> None:
    sample = environment(
        """
        import os
        calls = []

        def handler(event, context):
            calls.append(event["n"])
            return {"calls": calls, "pid": os.getpid()}
        """
    )
    assert sample.pid is None
    first, second = sample.invoke({"n": 1}), sample.invoke({"n": 2})
    assert second == {"calls": [1, 2], "pid": first["pid"]}
    assert first["pid"] == sample.pid != os.getpid()
    assert sample.cold_starts == 1


def test_the_context_is_lambdas(environment: Make) -> None:
    sample = environment(
        """
        def handler(event, context):
            names = ("aws_request_id", "function_name", "function_version", "invoked_function_arn",
                     "memory_limit_in_mb", "log_group_name", "log_stream_name")
            return {name: getattr(context, name) for name in names} | {
                "remaining": context.get_remaining_time_in_millis()
            }
        """,
        timeout_seconds=20,
    )
    first, second = sample.invoke({}), sample.invoke({})
    assert first["function_name"] == "sample"
    assert first["function_version"] == "$LATEST"
    assert first["invoked_function_arn"] == "arn:aws:lambda:us-east-1:000000000000:function:sample"
    assert first["memory_limit_in_mb"] == 256
    assert first["log_group_name"] == "/aws/lambda/sample"
    assert "[$LATEST]" in first["log_stream_name"]
    assert 0 < first["remaining"] <= 20_000
    assert first["aws_request_id"] != second["aws_request_id"]


def test_an_alias_is_another_name_for_the_same_environments(tmp_path: Path) -> None:
    code = """
        import os

        def handler(event, context):
            return [context.invoked_function_arn, context.function_version, os.getpid()]
        """
    with Function(configuration(tmp_path, code)) as function:
        first, second = function.alias("email-bulk").invoke({}), function.invoke({})
    arn = "arn:aws:lambda:us-east-1:000000000000:function:sample"
    assert first == [f"{arn}:email-bulk", "$LATEST", second[2]]
    assert second[0] == arn


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="memory is looked at in /proc")
def test_one_that_takes_too_much_memory_is_killed_and_the_next_starts_anew(environment: Make) -> None:
    sample = environment(
        """
        import time
        kept = []

        def handler(event, context):
            for _ in range(event["mb"]):
                kept.append(b"x" * 2**20)
            time.sleep(event["mb"] / 500)
            return len(kept)
        """,
        memory_mb=128,
    )
    assert sample.invoke({"mb": 100}) == 100
    with pytest.raises(FunctionCrashed, match="was killed by SIGKILL") as error:
        sample.invoke({"mb": 500})
    assert error.value.error_type == "Runtime.ExitError"
    assert sample.invoke({"mb": 0}) == 0


def test_it_sees_the_environment_it_was_given_and_nothing_of_ours(
    environment: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DATABASE_URL", "postgresql://ours")
    monkeypatch.setenv("AWS_PROFILE", "a-real-account")
    sample = environment(
        """
        import os
        import campaign_jobs

        def handler(event, context):
            return dict(os.environ)
        """,
        environment={"KAFKA_JOB_TOPIC": "some-topic"},
        aws_endpoint_url="http://127.0.0.1:1",
    )
    seen = sample.invoke({})
    assert seen["KAFKA_JOB_TOPIC"] == "some-topic"
    assert seen["AWS_ENDPOINT_URL"] == "http://127.0.0.1:1"
    assert seen["AWS_LAMBDA_FUNCTION_NAME"] == "sample"
    assert "DATABASE_URL" not in seen
    assert "AWS_PROFILE" not in seen


def test_a_handler_that_raises_fails_the_invocation_and_stays_warm(environment: Make) -> None:
    sample = environment(
        """
        class Broken(Exception):
            pass

        def handler(event, context):
            if event.get("fail"):
                raise Broken("no such thing")
            return "fine"
        """
    )
    with pytest.raises(FunctionFailed) as failed:
        sample.invoke({"fail": True})
    assert (failed.value.error_type, failed.value.message) == ("Broken", "no such thing")
    assert not isinstance(failed.value, FunctionCrashed | FunctionTimedOut)
    assert sample.invoke({}) == "fine"
    assert sample.cold_starts == 1


def test_a_handler_that_cannot_be_imported_fails_every_invocation(environment: Make) -> None:
    sample = environment("import no_such_module")
    for _ in range(2):
        with pytest.raises(FunctionFailed, match="no_such_module") as failed:
            sample.invoke({})
        assert failed.value.error_type == "ModuleNotFoundError"
    with pytest.raises(FunctionFailed, match="has no function named handler"):
        environment("x = 1").invoke({})


def test_a_result_that_is_not_json_fails(environment: Make) -> None:
    with pytest.raises(FunctionFailed, match=r"Runtime\.MarshalError"):
        environment("def handler(event, context): return {1, 2}").invoke({})


@pytest.mark.parametrize(
    ("ending", "how"),
    [
        ("os._exit(3)", "exited with status 3"),
        ("raise SystemExit(4)", "exited with status 4"),
        ("os.kill(os.getpid(), signal.SIGKILL)", "was killed by SIGKILL"),
    ],
)
def test_a_crash_is_told_apart_and_the_next_invocation_starts_a_new_process(
    environment: Make, ending: str, how: str
) -> None:
    sample = environment(
        f"""
        import os, signal

        def handler(event, context):
            if event.get("crash"):
                {ending}
            return os.getpid()
        """
    )
    first = sample.invoke({})
    with pytest.raises(FunctionCrashed, match=how):
        sample.invoke({"crash": True})
    assert sample.invoke({}) != first
    assert sample.cold_starts == 2


def test_a_process_that_dies_between_invocations_is_replaced(environment: Make) -> None:
    sample = environment("def handler(event, context): return event")
    sample.invoke({})
    assert sample.pid is not None
    os.kill(sample.pid, signal.SIGKILL)
    os.waitid(os.P_PID, sample.pid, os.WEXITED | os.WNOWAIT)
    assert sample.invoke({"n": 1}) == {"n": 1}


@pytest.mark.parametrize("hang", ["time.sleep(600)", "os.kill(os.getpid(), signal.SIGSTOP)"])
def test_an_invocation_that_outruns_its_timeout_is_killed(environment: Make, hang: str) -> None:
    sample = environment(
        f"""
        import os, signal, time

        def handler(event, context):
            if event.get("hang"):
                {hang}
            return "fine"
        """,
        timeout_seconds=0.5,
    )
    sample.invoke({})
    pid = sample.pid
    assert pid is not None
    with pytest.raises(FunctionTimedOut, match=r"took over 0\.5 s"):
        sample.invoke({"hang": True})
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)
    assert sample.invoke({}) == "fine"
    assert sample.cold_starts == 2


def test_its_output_goes_line_by_line_to_the_log_and_the_callback(environment: Make, tmp_path: Path) -> None:
    lines: list[tuple[str, str]] = []
    sample = environment(
        """
        import sys

        def handler(event, context):
            print('{"message": "hello"}')
            print("to stderr", file=sys.stderr)
            raise ValueError("with a trace")
        """,
        on_log_line=lambda function, line: lines.append((function, line)),
    )
    with pytest.raises(FunctionFailed):
        sample.invoke({})
    sample.close()
    assert lines[:2] == [("sample", '{"message": "hello"}'), ("sample", "to stderr")]
    assert lines[-1] == ("sample", "ValueError: with a trace")
    written = (tmp_path / "logs" / "sample.log").read_text(encoding="utf-8").splitlines()
    assert written == [line for _, line in lines]


def test_events_and_results_of_lambdas_largest_size_pass(environment: Make) -> None:
    event = {"text": "ä" * 1_000_000 + "x" * 3_000_000}
    assert environment("def handler(event, context): return event").invoke(event) == event


def test_ctrl_c_in_the_terminal_does_not_reach_it(environment: Make) -> None:
    sample = environment(
        """
        import os, signal

        def handler(event, context):
            os.kill(os.getpid(), signal.SIGINT)
            return os.getsid(0) == os.getpid()
        """
    )
    assert sample.invoke({}) is True


def test_close_ends_the_process(environment: Make) -> None:
    sample = environment("import os\ndef handler(event, context): return os.getpid()")
    pid = sample.invoke({})
    sample.close()
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)
    sample.close()


@pytest.mark.parametrize(
    "state",
    [
        "idle",
        "busy",
        pytest.param(
            "stopped",
            marks=pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells the kernel to"),
        ),
    ],
)
def test_it_dies_with_its_parent_whatever_it_is_doing(tmp_path: Path, state: str) -> None:
    made = configuration(
        tmp_path,
        """
        import os, signal, time

        def handler(event, context):
            if event["state"] != "idle":
                print("started", flush=True)
            if event["state"] == "busy":
                time.sleep(600)
            if event["state"] == "stopped":
                os.kill(os.getpid(), signal.SIGSTOP)
            return os.getpid()
        """,
    )
    program = textwrap.dedent(
        """
        import sys, threading
        from pathlib import Path
        from local.functions import FunctionConfiguration, FunctionEnvironment
        handler, log_dir, state = sys.argv[1:]
        started = threading.Event()
        sample = FunctionEnvironment(FunctionConfiguration(
            name="sample", handler=Path(handler), timeout_seconds=60, memory_mb=128, log_dir=Path(log_dir),
            on_log_line=lambda *_: started.set(),
        ))
        pid = sample.invoke({"state": "idle"})
        if state != "idle":
            threading.Thread(target=sample.invoke, args=({"state": state},), daemon=True).start()
            started.wait()
        print(pid, flush=True)
        sys.stdin.read()
        """
    )
    with subprocess.Popen(
        [sys.executable, "-c", program, str(made.handler), str(made.log_dir), state],
        env={**os.environ, "PYTHONPATH": PYTHON_PATH},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as parent:
        assert parent.stdout is not None
        pid = int(parent.stdout.readline())
        os.kill(pid, 0)
        if state == "stopped":
            while _state(pid) != "T":
                threading.Event().wait(0.01)
        parent.kill()
    # Where nobody reaps orphans, it stays as a zombie.
    while _state(pid) not in (None, "Z"):
        threading.Event().wait(0.01)


def _state(pid: int) -> str | None:
    """The process's state as ps(1) shows it, or None when it is gone."""
    shown = subprocess.run(["ps", "-o", "stat=", "-p", str(pid)], capture_output=True, text=True, check=False)
    return shown.stdout.strip()[:1] or None


def test_environments_of_a_function_run_side_by_side_up_to_its_concurrency(tmp_path: Path) -> None:
    made = configuration(
        tmp_path,
        """
        import os, time
        from pathlib import Path

        def handler(event, context):
            meeting = Path(event["meeting"])
            (meeting / str(event["n"])).touch()
            while event["wait_for"] and len(list(meeting.iterdir())) < event["wait_for"]:
                time.sleep(0.01)
            return os.getpid()
        """,
    )
    with Function(made, max_concurrency=2) as function, ThreadPoolExecutor(4) as threads:
        meeting = tmp_path / "meeting"
        meeting.mkdir()
        # Each of the two waits for the other, so neither returns unless both run at once.
        events = [{"meeting": str(meeting), "n": n, "wait_for": 2} for n in range(2)]
        assert len(set(threads.map(function.invoke, events))) == 2
        # More threads than environments: the others wait for their turn.
        events = [{"meeting": str(meeting), "n": n, "wait_for": 0} for n in range(8)]
        assert len(set(threads.map(function.invoke, events))) <= 2
        assert (function.invocations, function.failures, function.cold_starts) == (10, 0, 2)


def test_a_thread_that_ends_does_not_take_the_process_it_started_along(tmp_path: Path) -> None:
    made = configuration(tmp_path, "import os\ndef handler(event, context): return os.getpid()")
    with Function(made) as function:
        pids = []
        for _ in range(2):
            thread = threading.Thread(target=lambda: pids.append(function.invoke({})))
            thread.start()
            thread.join()
        assert pids[0] == pids[1]
        assert function.cold_starts == 1


def test_a_recorded_event_reaches_the_handler_unchanged(environment: Make, repository: Path) -> None:
    sample = environment("def handler(event, context): return event")
    for name in ("kafka", "sqs", "scheduled"):
        event = json.loads((repository / "tests" / "events" / f"{name}.json").read_text(encoding="utf-8"))
        assert sample.invoke(event) == event

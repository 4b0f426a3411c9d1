"""A process that has everything imported and forks execution environments: `python -m tests.crash.runner <fd>`.

A frame on the socket `fd` says what the environment is, and a child that has loaded its handler takes over the socket
and answers when it is ready. It forks an environment for each frame that asks for one, and ends with the first other.
In the environment each frame asks for one invocation and is answered by what became of it, until one says that it is
the end. It runs a real handler, with boundaries counted, and dies where it is told to: what was in its memory is gone,
as in Lambda. Its parent then says how it ended.
"""

import functools
import gc
import importlib
import os
import pkgutil
import socket
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import boto3

import campaign_jobs
from campaign_jobs.email.rendering import built_in, render
from campaign_jobs.email.samples import EMAIL_TYPES, sample_context
from campaign_jobs.email.ses import SesSender
from campaign_jobs.fraud.lists import is_crawler
from campaign_jobs.worker.queues import SqsQueues
from local.runtime import Context, Handler, load_handler, receive_frame, send_frame
from tests.crash.boundaries import Boundaries

RETURN = "the handler's return"


def _import_all() -> None:
    for module in pkgutil.walk_packages(campaign_jobs.__path__, "campaign_jobs."):
        importlib.import_module(module.name)
    # What is imported on the way.
    for name in ("confluent_kafka.admin", "encodings.idna"):
        importlib.import_module(name)
    # What a client is made of is read once and kept by boto3's session.
    for service in ("sesv2", "sqs", "events"):
        boto3.client(service, region_name="us-east-1", aws_access_key_id="none", aws_secret_access_key="none")
    for email_type in EMAIL_TYPES:
        render(built_in(email_type), sample_context(email_type))
    # It compiles its patterns when it is first asked.
    is_crawler("a browser")
    # So that collecting garbage does not copy what the children share.
    gc.freeze()


def _build_clients() -> None:
    """The handler's clients of AWS; each environment would build its own, which takes as long as some invocations."""
    for found in gc.get_objects():
        if type(found) in (SesSender, SqsQueues):
            _ = found._client


def _report(boundaries: Boundaries, **result: Any) -> dict[str, Any]:
    return {
        "boundaries": [
            {"label": str(item), "phase": item.phase, "alters": item.alters, "lines": item.lines}
            for item in boundaries.reached
        ],
        "unnumbered": boundaries.unnumbered,
        **result,
    }


def _invoke(handler: Handler, boundaries: Boundaries, request: dict[str, Any]) -> dict[str, Any]:
    try:
        deadline = int(time.time() * 1000) + request["remaining_ms"]
        context = Context("request-of-the-crash-suite", deadline, request["qualifier"])
        result = handler(request["event"], context)
        # The last boundary of all: it has succeeded, and the event-source mapping has not heard of it.
        boundaries.mark("after", RETURN)
    except Exception as error:  # noqa: BLE001  It is reported.
        return _report(boundaries, error=f"{type(error).__name__}: {error}")
    return _report(boundaries, result=result)


def _stand_by(channel: socket.socket, environment: dict[str, Any]) -> None:
    """In a child: load the handler once, and fork as many environments as are asked for."""
    log = os.open(environment["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    os.dup2(log, 1)
    os.dup2(log, 2)
    os.environ.clear()
    os.environ.update(environment["variables"])
    for name, value in environment["constants"].items():
        module, _, constant = name.partition(":")
        assert hasattr(importlib.import_module(module), constant), name
        setattr(importlib.import_module(module), constant, value)
    boundaries = Boundaries(lambda: send_frame(channel, _report(boundaries)))
    boundaries.install()
    handler = load_handler(environment["function"], Path(environment["handler"]))
    _build_clients()
    assert not boundaries.reached and not boundaries.unnumbered, (
        "what importing a handler touches is touched by every cold start, and numbered by none"
    )
    gc.freeze()
    send_frame(channel, {"ready": True})
    while (request := receive_frame(channel)) is not None and "start" in request:
        send_frame(channel, {"exit": _fork(lambda: _serve(channel, handler, boundaries))})


def _serve(channel: socket.socket, handler: Handler, boundaries: Boundaries) -> None:
    """In a child's child: one execution environment, which answers one invocation after the other."""
    while (request := receive_frame(channel)) is not None and "end" not in request:
        # JSON has made lists of them.
        stop_at, late_after = (
            moment and (moment[0], moment[1]) for moment in (request["stop_at"], request["late_after"])
        )
        boundaries.begin(stop_at, late_after, request["remaining_ms"] / 1000)
        send_frame(channel, _invoke(handler, boundaries, request))


def _fork(work: Callable[[], None]) -> int:
    """Do it in a child; returns how it ended."""
    child = os.fork()
    if child == 0:
        status = 1
        try:
            work()
            status = 0
        except BaseException:  # noqa: BLE001  It is in the log, and the status says so.
            traceback.print_exc()
        finally:
            # Threads of the handler's would be waited for otherwise; Lambda freezes them and waits for nobody.
            os._exit(status)
    _, status = os.waitpid(child, 0)
    return os.waitstatus_to_exitcode(status)


def main() -> None:
    channel = socket.socket(fileno=int(sys.argv[1]))
    _import_all()
    send_frame(channel, {"ready": True})
    while (environment := receive_frame(channel)) is not None:
        status = _fork(functools.partial(_stand_by, channel, environment))
        if status != 0:
            send_frame(channel, {"exit": status})


if __name__ == "__main__":
    main()

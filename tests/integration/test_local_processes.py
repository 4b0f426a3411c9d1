"""No server outlives the process that started it, and one that does not start says why."""

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from local.processes import ChildProcess, StartError, pick_port

SLEEPER = [sys.executable, "-c", "import time; print('up', flush=True); time.sleep(600)"]
STUBBORN = [
    sys.executable,
    "-c",
    "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('up', flush=True); time.sleep(600)",
]

# Starts a child from a thread that ends at once, as a pool's thread would, and then waits.
PARENT = """
import signal, sys, threading, time
from pathlib import Path
from local.processes import ChildProcess

# Whoever runs the tests in the background of a shell has it ignored, and children inherit that.
signal.signal(signal.SIGINT, signal.default_int_handler)
child = ChildProcess("sleeper", sys.argv[2:], log_file=Path(sys.argv[1]))
thread = threading.Thread(target=child.start)
thread.start()
thread.join()
child.wait_until(lambda: "up" in Path(sys.argv[1]).read_text(), timeout_seconds=30)
print(child.pid, child.running, flush=True)
time.sleep(600)
"""


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    # Where nobody adopts orphans, one that has ended stays as a zombie.
    state = Path(f"/proc/{pid}/stat")
    return not state.exists() or state.read_text().rsplit(")", 1)[1].split()[0] != "Z"


@pytest.mark.parametrize(
    "end",
    [
        pytest.param(
            signal.SIGKILL,
            marks=pytest.mark.skipif(sys.platform != "linux", reason="needs Linux's death signal"),
        ),
        signal.SIGINT,
    ],
)
def test_a_child_does_not_outlive_its_parent(tmp_path: Path, repository: Path, end: signal.Signals) -> None:
    log_file = tmp_path / "log"
    path = os.pathsep.join([str(repository), str(repository / "layers/campaign_jobs/python")])
    parent = subprocess.Popen(
        [sys.executable, "-c", PARENT, str(log_file), *SLEEPER],
        env={**os.environ, "PYTHONPATH": path},
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    assert parent.stdout is not None
    pid, running = parent.stdout.readline().split()
    assert running == "True", "the end of the thread that asked for it is not the end of the child"
    parent.send_signal(end)
    parent.communicate()
    deadline = time.monotonic() + 30
    while alive(int(pid)) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not alive(int(pid))


def test_a_child_is_out_of_reach_of_the_terminal(tmp_path: Path) -> None:
    with ChildProcess("sleeper", SLEEPER, log_file=tmp_path / "log") as child:
        assert os.getsid(child.pid) == child.pid != os.getsid(0)
        assert os.getpgid(child.pid) == child.pid
    assert not child.running


def test_a_child_that_ignores_the_request_to_stop_is_killed(tmp_path: Path) -> None:
    child = ChildProcess("stubborn", STUBBORN, log_file=tmp_path / "log", grace_seconds=0.2)
    child.start()
    child.wait_until(lambda: "up" in (tmp_path / "log").read_text(), timeout_seconds=30)
    pid = child.pid
    child.stop()
    assert not alive(pid)
    child.stop()  # a second time does no harm


def test_a_child_that_ends_while_starting_is_explained_by_its_log(tmp_path: Path) -> None:
    script = "import sys; print('the port is taken'); sys.exit(3)"
    child = ChildProcess("server", [sys.executable, "-c", script], log_file=tmp_path / "log")
    child.start()
    with pytest.raises(
        StartError, match=r"server ended while starting, with status 3(.|\n)*the port is taken"
    ):
        child.wait_until(lambda: False, timeout_seconds=30)


def test_a_child_that_is_never_ready_is_stopped(tmp_path: Path) -> None:
    child = ChildProcess("sleeper", SLEEPER, log_file=tmp_path / "log")
    child.start()
    with pytest.raises(StartError, match=r"sleeper was not ready after 0\.1 s"):
        child.wait_until(lambda: False, timeout_seconds=0.1)
    assert not child.running


def test_a_program_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(StartError, match=r"server cannot be started: .*no-such-program"):
        ChildProcess("server", ["no-such-program"], log_file=tmp_path / "log").start()


def test_a_busy_port_is_left_alone() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        busy = server.getsockname()[1]
        assert pick_port(busy) != busy
    assert pick_port(busy) == busy

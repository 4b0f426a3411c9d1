"""Child processes that end with us, and the ports they listen on."""

import ctypes
import signal
import socket
import sys
from collections.abc import Callable

PR_SET_PDEATHSIG = 1


def die_with_parent(with_signal: signal.Signals = signal.SIGTERM) -> Callable[[], None] | None:
    """A `preexec_fn` after which the kernel sends the child `with_signal` when we die, however we die (Linux only)."""
    if not sys.platform.startswith("linux"):
        return None
    libc = ctypes.CDLL(None, use_errno=True)
    return lambda: libc.prctl(PR_SET_PDEATHSIG, int(with_signal), 0, 0, 0)


def pick_port(preferred: int | None = None) -> int:
    """`preferred` when nobody listens there, else a free port of 127.0.0.1."""
    for port in (preferred, 0):
        if port is None:
            continue
        with socket.socket() as candidate:
            candidate.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                candidate.bind(("127.0.0.1", port))
            except OSError:
                continue
            return int(candidate.getsockname()[1])
    raise RuntimeError("no free port on 127.0.0.1")

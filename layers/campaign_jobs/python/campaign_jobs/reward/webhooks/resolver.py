"""Host names to addresses, by the system's resolver, in bounded time."""

import queue
import socket
import threading
from collections.abc import Sequence


def resolve(host: str, port: int, *, timeout_seconds: float) -> Sequence[str]:
    """All addresses of a host. Raises OSError when it has none, TimeoutError (an OSError) when it takes too long."""
    answers: queue.SimpleQueue[Sequence[str] | OSError] = queue.SimpleQueue()
    # getaddrinfo takes no timeout and cannot be interrupted, so a thread that nobody waits for takes its time.
    threading.Thread(target=_ask, args=(host, port, answers), daemon=True, name="webhook-resolver").start()
    try:
        answer = answers.get(timeout=max(0.0, timeout_seconds))
    except queue.Empty:
        raise TimeoutError from None
    if isinstance(answer, OSError):
        raise answer
    return answer


def _ask(host: str, port: int, answers: "queue.SimpleQueue[Sequence[str] | OSError]") -> None:
    try:
        entries = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except OSError as error:
        answers.put(error)
    except UnicodeError:
        # What the codec for host names raises for a label of more than 63 characters.
        answers.put(OSError("the host name is not valid"))
    else:
        answers.put([str(address[0]) for *_, address in entries])

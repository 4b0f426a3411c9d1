"""The few WSGI types and habits that the middlewares share, and the paths that are ours among those of AWS."""

from collections.abc import Callable, Iterable
from typing import Any, Final

READY_PATH: Final = "/campaign-jobs/ready"
SCRIPT_PATH: Final = "/campaign-jobs/ses-script"
FEEDBACK_PATH: Final = "/campaign-jobs/ses-feedback"
ACCOUNT_PATH: Final = "/campaign-jobs/ses-account"

Environ = dict[str, Any]
StartResponse = Callable[..., Any]
Application = Callable[[Environ, StartResponse], Iterable[bytes]]


def read_body(environ: Environ) -> bytes:
    body: bytes = environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
    return body

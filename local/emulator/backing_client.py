"""Asks the process that has the real servers, from within ministack's."""

import json
import os
import urllib.error
import urllib.request
from collections.abc import Mapping
from typing import Any, Final

BACKING_URL: Final = "EMULATOR_BACKING_URL"
_TIMEOUT_SECONDS: Final = 60

# Never through a proxy that the environment names for the rest of the world.
_direct: Final = urllib.request.build_opener(urllib.request.ProxyHandler({}))


def ask_backing(method: str, path: str, body: Mapping[str, Any] | None = None) -> Any:
    """The answer of local/emulator/backing.py. Raises ValueError with its text, which fails a resource."""
    request = urllib.request.Request(  # noqa: S310  It is http.
        f"{os.environ[BACKING_URL]}/{path}", method=method, data=json.dumps(body or {}).encode()
    )
    try:
        with _direct.open(request, timeout=_TIMEOUT_SECONDS) as answer:
            return json.load(answer)
    except urllib.error.HTTPError as error:
        raise ValueError(f"{method} {path}: {error.read().decode()}") from error

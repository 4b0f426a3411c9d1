"""Any environment is read into settings, or refused with a line for each variable, and a secret is never repeated."""

from typing import Final

from campaign_jobs.errors import SettingsError
from campaign_jobs.settings import BY_FUNCTION

_CLASSES: Final = [BY_FUNCTION[name] for name in sorted(BY_FUNCTION)]
SECRET: Final = "correct-horse-battery"


def run(data: bytes) -> None:
    """The first byte chooses a function; then NAME=value, one a line."""
    of = _CLASSES[(data[0] if data else 0) % len(_CLASSES)]
    # As os.environ has it: bytes that are not UTF-8 come as lone surrogates; NUL cannot come.
    text = data[1:].replace(b"\x00", b"").decode("utf-8", "surrogateescape")
    environ = dict(line.split("=", 1) for line in text.split("\n") if "=" in line)
    if "DATABASE_URL" in environ:
        environ["DATABASE_URL"] += SECRET
    try:
        loaded = of.load(environ)
    except SettingsError as error:
        assert error.problems
        for problem in error.problems:
            assert "\n" not in problem and "\r" not in problem
            assert any(name in problem for name in of.environment_names())
            assert SECRET not in problem
        return
    assert of.load(environ) == loaded

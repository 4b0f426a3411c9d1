"""The filters of the language that email templates are written in (see `sandbox`).

Each takes plain values, checks how much it is about to build before it builds it, and raises SecurityError
where it will not. Jinja2's own are not used: ``center``, ``format``, ``indent``, ``replace``, ``round`` and
``wordwrap`` build as much as their arguments say, and ``safe`` and ``tojson`` get past escaping.
"""

from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final
from urllib.parse import quote

from jinja2.exceptions import SecurityError
from jinja2.runtime import Undefined

MAX_BUILT_CHARACTERS: Final = 50_000
EMPTY: Final = "it uses a value that can be empty; test it with {% if … %} first or give it a default"


def reserve(characters: int) -> None:
    if characters > MAX_BUILT_CHARACTERS:
        raise SecurityError(f"an expression builds more than {MAX_BUILT_CHARACTERS} characters")


def printable(value: Any) -> Any:
    if value is None:
        raise SecurityError(EMPTY)
    if not isinstance(value, (str, int, float, Undefined)):
        raise SecurityError(f"a value of type {type_name(value)} cannot be printed")
    return value


def as_text(value: Any) -> str:
    if isinstance(value, Undefined):
        value._fail_with_undefined_error()
    return str(printable(value))


def is_number(value: Any) -> bool:
    return isinstance(value, (int, float))


def type_name(value: Any) -> str:
    if isinstance(value, Undefined):
        value._fail_with_undefined_error()
    if isinstance(value, str):
        return "text"
    if is_number(value):
        return "number"
    if isinstance(value, Mapping):
        return "mapping"
    return "nothing" if value is None else type(value).__name__


def _number(value: float) -> str:
    """12345 as 12,345."""
    if not is_number(value):
        raise SecurityError(f"number needs a number, not a value of type {type_name(value)}")
    return f"{value:,}"


def _join(values: Iterable[Any], separator: str = "") -> str:
    texts = [as_text(value) for value in _several(values)]
    reserve(sum(map(len, texts)) + len(separator) * len(texts))
    return separator.join(texts)


def _replace(text: str, old: str, new: str) -> str:
    if not old:
        raise SecurityError("replace needs a text to look for")
    reserve(len(text) + text.count(old) * len(new))
    return text.replace(old, new)


def _truncate(text: str, length: int = 255) -> str:
    return text if len(text) <= length else text[: max(0, length - 1)].rstrip() + "…"


def _round(value: float, digits: int = 0) -> float:
    if not 0 <= digits <= 10:
        raise SecurityError("round takes 0 to 10 digits")
    return round(value, digits)


def _items(values: Mapping[str, Any]) -> list[tuple[str, Any]]:
    if not isinstance(values, Mapping):
        raise SecurityError(f"items needs a mapping, not a value of type {type_name(values)}")
    return list(values.items())


def _several(values: Any) -> Any:
    if not isinstance(values, (str, Mapping, range, tuple, list)):
        raise SecurityError(f"a value of type {type_name(values)} has no parts")
    return values


def _url_encode(text: str | float) -> str:
    return quote(as_text(text), safe="")


FILTERS: Final[dict[str, Callable[..., Any]]] = {
    "abs": abs,
    "capitalize": lambda text: as_text(text).capitalize(),
    "int": int,
    "items": _items,
    "join": _join,
    "length": lambda values: len(_several(values)),
    "lower": lambda text: as_text(text).lower(),
    "number": _number,
    "replace": lambda text, old, new: _replace(as_text(text), as_text(old), as_text(new)),
    "round": _round,
    "string": as_text,
    "title": lambda text: as_text(text).title(),
    "trim": lambda text: as_text(text).strip(),
    "truncate": lambda text, length=255: _truncate(as_text(text), length),
    "upper": lambda text: as_text(text).upper(),
    "urlencode": _url_encode,
}

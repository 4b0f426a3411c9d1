"""Inputs for the property tests: any bytes, and changed ones of the corpus, which get further into a parser."""

import json
from typing import Any

from hypothesis import strategies as st

from tests.fuzz.targets import corpus, size_limit

_JSON: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=10), inner, max_size=3),
    max_leaves=8,
)


def inputs(name: str) -> st.SearchStrategy[bytes]:
    seeds = st.sampled_from([path.read_bytes() for path in corpus(name)])
    anything = st.binary(max_size=200)
    ways = [anything, st.text().map(lambda text: text.encode("utf-8", "replace")), _changed(seeds)]
    if name in ("records", "bodies", "ses_events", "backfills"):
        ways.append(_changed_json(name))
    return st.one_of(ways).map(lambda data: data[: size_limit(name)])


@st.composite
def _changed(draw: st.DrawFn, seeds: st.SearchStrategy[bytes]) -> bytes:
    """A seed with a part replaced, dropped or repeated, as a fuzzer would."""
    data = draw(seeds)
    begin = draw(st.integers(0, len(data)))
    end = draw(st.integers(begin, min(len(data), begin + 30)))
    middle = draw(st.one_of(st.binary(max_size=20), st.just(data[begin:end] * 2), seeds))
    return data[:begin] + middle + data[end:]


@st.composite
def _changed_json(draw: st.DrawFn, name: str) -> bytes:
    """A valid document with one value, however deep, replaced by another."""
    documents = []
    for path in corpus(name):
        try:
            document = json.loads(path.read_bytes())
        except (ValueError, RecursionError):
            continue
        if isinstance(document, dict):
            documents.append(document)
    document = json.loads(json.dumps(draw(st.sampled_from(documents))))
    inner: Any = document
    while True:
        keys: list[Any] = list(inner) if isinstance(inner, dict) else list(range(len(inner)))
        if not keys:
            break
        key = draw(st.sampled_from(keys))
        if isinstance(inner[key], (dict, list)) and draw(st.integers(0, 3)):
            inner = inner[key]
            continue
        inner[key] = draw(_JSON)
        break
    return json.dumps(document).encode()

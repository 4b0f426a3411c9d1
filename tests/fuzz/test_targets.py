"""The properties of everything that parses bytes from outside, on the corpus and on what Hypothesis thinks of."""

from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.fuzz.inputs import inputs
from tests.fuzz.targets import CORPUS, NAMES, corpus, load
from tests.ssrf.corpus import entries


@pytest.mark.parametrize("name", NAMES)
def test_the_corpus_keeps_to_the_property(name: str) -> None:
    target = load(name)
    for path in corpus(name):
        target(path.read_bytes())


@pytest.mark.parametrize("name", NAMES)
@given(data=st.data())
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_whatever_comes_keeps_to_the_property(name: str, data: st.DataObject) -> None:
    load(name)(data.draw(inputs(name)))


def test_the_ssrf_corpus_keeps_to_the_property() -> None:
    urls = [entry["url"] for kind in ("url", "allowed") for entry in entries(kind)]
    urls += [f"https://{entry['host']}/" for kind in ("spelling", "answers") for entry in entries(kind)]
    for url in urls:
        load("urls")(url.encode())


def test_every_target_has_a_corpus_and_every_corpus_a_target() -> None:
    assert {path.name for path in Path(CORPUS).iterdir()} == set(NAMES)

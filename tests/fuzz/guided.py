"""One target under Atheris, which follows the coverage: `python -m tests.fuzz.guided <target> <libFuzzer options>`."""

import logging
import sys

import atheris

# Only what is imported in this block counts as coverage; its imports are the package's parsers.
with atheris.instrument_imports(
    include=["campaign_jobs", "campaign_jobs_cli", "json.decoder", "http.client", "urllib.parse"]
):
    from tests.fuzz.targets import load, size_limit

    target = load(sys.argv[1])

logging.disable(logging.CRITICAL)
atheris.Setup([sys.argv[0], f"-max_len={size_limit(sys.argv[1])}", *sys.argv[2:]], target)
atheris.Fuzz()

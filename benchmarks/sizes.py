"""What is uploaded to Lambda: the two layers and the functions' own code, in bytes."""

import shutil
import tempfile
from pathlib import Path

from benchmarks.environments import REPOSITORY
from infra import build_dependencies

ARCHITECTURE = "arm64"
"""What the stack deploys unless it is told otherwise."""
LEAVE_OUT = shutil.ignore_patterns("__pycache__", "*.pyc", ".*")

Sizes = dict[str, tuple[int, int]]
"""By name, unzipped and zipped."""


def measure(*, dependencies: bool) -> Sizes:
    """`dependencies` builds that layer as a deployment does, from wheels for Lambda's platform."""
    with tempfile.TemporaryDirectory(prefix="sizes-") as scratch:
        directory = Path(scratch)
        sizes = {
            "the package's layer": _of(
                REPOSITORY / "layers" / "campaign_jobs" / "python", directory / "package"
            )
        }
        if dependencies:
            archive = build_dependencies.build(directory, ARCHITECTURE)
            sizes["the layer of dependencies"] = _size(directory / "layer"), archive.stat().st_size
        functions = [
            _of(path.parent, directory / path.parent.name)
            for path in sorted((REPOSITORY / "functions").glob("*/handler.py"))
        ]
    unzipped, zipped = zip(*functions, strict=True)
    return {**sizes, f"the {len(functions)} functions together": (sum(unzipped), sum(zipped))}


def _of(source: Path, copy: Path) -> tuple[int, int]:
    shutil.copytree(source, copy, ignore=LEAVE_OUT)
    return _size(copy), Path(shutil.make_archive(str(copy), "zip", copy)).stat().st_size


def _size(directory: Path) -> int:
    return sum(file.stat().st_size for file in directory.rglob("*") if file.is_file())

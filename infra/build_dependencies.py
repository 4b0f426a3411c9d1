"""Builds the layer of third-party code for Lambda, on any machine, without Docker; prints the archive's path.

The CDK command line runs this module, with the architecture, when an asset with the layer's hash is not published yet.
"""

import argparse
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Final

LOCK_FILE: Final = Path(__file__).parent.parent / "layers" / "dependencies" / "requirements.txt"
PYTHON_VERSION: Final = "3.13"
# By Lambda's name of the architecture. Its Amazon Linux 2023 has glibc 2.34; pip takes each tag literally, so older
# ones are named as well.
PLATFORMS: Final = {
    "arm64": ("manylinux_2_28_aarch64", "manylinux2014_aarch64", "manylinux_2_17_aarch64"),
    "x86_64": ("manylinux_2_28_x86_64", "manylinux2014_x86_64", "manylinux_2_17_x86_64"),
}
_LAMBDA_LIMIT_BYTES: Final = 250 * 1024 * 1024


def build(directory: Path, architecture: str) -> Path:
    """Install the locked wheels below `directory`; return a zip archive of them, laid out as a Lambda layer.

    Raises CalledProcessError where a wheel is missing for the platform or does not have the locked hash, and
    ValueError where the layer is larger than Lambda takes.
    """
    layer = directory / "layer"
    platforms = [argument for platform in PLATFORMS[architecture] for argument in ("--platform", platform)]
    command = [
        sys.executable,
        "-m",
        "pip",
        "install",
        "--quiet",
        "--disable-pip-version-check",
        "--no-compile",
    ]
    # The lock file is complete, and pip would judge its dependencies' markers by the machine it runs on.
    command += ["--no-deps", "--require-hashes", "--only-binary", ":all:", "--implementation", "cp"]
    command += ["--python-version", PYTHON_VERSION, *platforms]
    command += ["--target", str(layer / "python"), "--requirement", str(LOCK_FILE)]
    # Standard output is kept for the archive's path.
    subprocess.run(command, check=True, stdout=sys.stderr)
    size = sum(file.stat().st_size for file in layer.rglob("*") if file.is_file())
    if size > _LAMBDA_LIMIT_BYTES:
        raise ValueError(f"the layer has {size} bytes unzipped; Lambda takes at most {_LAMBDA_LIMIT_BYTES}")
    archive = Path(shutil.make_archive(str(directory / "dependencies"), "zip", layer))
    zipped = archive.stat().st_size
    print(
        f"The dependencies layer: {size / 1e6:.1f} MB unzipped, {zipped / 1e6:.1f} MB zipped", file=sys.stderr
    )
    return archive


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m infra.build_dependencies", description=__doc__)
    parser.add_argument("architecture", choices=PLATFORMS, help="that of the functions")
    wanted = parser.parse_args().architecture
    print(build(Path(tempfile.mkdtemp(prefix="campaign-jobs-layer-")), wanted))

"""The two layers under every function: our package, and what it needs from others."""

import hashlib
from pathlib import Path
from typing import Final

import aws_cdk as cdk
from aws_cdk import aws_lambda as lambda_
from constructs import Construct

from infra import build_dependencies
from infra.build_dependencies import LOCK_FILE, PLATFORMS, PYTHON_VERSION

REPOSITORY: Final = Path(__file__).parent.parent
RUNTIME: Final = lambda_.Runtime.PYTHON_3_13
ARCHITECTURES: Final = {"arm64": lambda_.Architecture.ARM_64, "x86_64": lambda_.Architecture.X86_64}
DEFAULT_ARCHITECTURE: Final = "arm64"


class Layers(Construct):
    """`architecture` is that of all functions, whose compiled code is here: arm64, or what `-c architecture=` says."""

    def __init__(self, scope: Construct, id: str) -> None:
        super().__init__(scope, id)
        self.architecture = ARCHITECTURES[self.node.try_get_context("architecture") or DEFAULT_ARCHITECTURE]
        self.campaign_jobs = lambda_.LayerVersion(
            self,
            "CampaignJobs",
            description="The package campaign_jobs",
            code=lambda_.Code.from_asset(
                str(REPOSITORY / "layers" / "campaign_jobs"),
                # Only the package is for the functions; what lies beside it is for services that install it.
                exclude=[
                    *("*", "!python", "python/*", "!python/campaign_jobs", "!python/campaign_jobs/**"),
                    *("**/__pycache__", "**/*.pyc", "**/.*"),
                ],
            ),
            compatible_runtimes=[RUNTIME],
            compatible_architectures=[self.architecture],
        )
        self.dependencies = self._dependencies()

    def _dependencies(self) -> lambda_.ILayerVersion:
        """Built by the CDK command line when it publishes assets, so only deploying downloads anything."""
        location = cdk.Stack.of(self).synthesizer.add_file_asset(
            source_hash=dependencies_hash(self.architecture.name),
            # Run from the directory of cdk.json.
            executable=["python3", "-m", build_dependencies.__name__, self.architecture.name],
            display_name="Dependencies layer",
        )
        layer = lambda_.CfnLayerVersion(
            self,
            "Dependencies",
            description="Third-party code of the functions",
            content=lambda_.CfnLayerVersion.ContentProperty(
                s3_bucket=location.bucket_name, s3_key=location.object_key
            ),
            compatible_runtimes=[RUNTIME.name],
            compatible_architectures=[self.architecture.name],
        )
        return lambda_.LayerVersion.from_layer_version_arn(self, "DependenciesVersion", layer.ref)


def dependencies_hash(architecture: str = DEFAULT_ARCHITECTURE) -> str:
    """Changes with what decides what the layer holds."""
    source = hashlib.sha256(LOCK_FILE.read_bytes())
    source.update(repr((PYTHON_VERSION, PLATFORMS[architecture])).encode())
    return source.hexdigest()

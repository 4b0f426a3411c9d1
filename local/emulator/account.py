"""One emulated AWS account with everything behind it."""

import json
import os
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any, Final, Self

import boto3
from botocore.config import Config

from local.certificates import Certificates, make_certificates
from local.emulator.backing import Backing
from local.emulator.database import DatabaseServer
from local.emulator.mappings import DeployedMappings
from local.kafka import KafkaBroker
from local.processes import HOST, ChildProcess, Service, pick_port

# ministack takes an access key of twelve digits for the account.
ACCOUNT: Final = "123456789012"
REGION: Final = "us-east-1"
LAUNCHER: Final = Path(__file__).with_name("launcher.py")
NODE_MODULES: Final = Path(__file__).parent / "node" / "node_modules"
_START_SECONDS: Final = 60
_FUNCTION_SECONDS: Final = 900

# Never through a proxy that the environment names for the rest of the world.
_direct: Final = urllib.request.build_opener(urllib.request.ProxyHandler({}))


class EmulatedAccount(Service):
    """ministack on `interpreter`, an environment with the functions' Python version, with PostgreSQL and Kafka."""

    def __init__(
        self, directory: Path, interpreter: Path, *, variables: dict[str, str] | None = None
    ) -> None:
        """`variables` are added to every function's environment."""
        self.directory = directory
        self.certificates: Certificates = make_certificates(directory, [HOST])
        self.kafka = KafkaBroker(directory / "kafka")
        self.postgres = DatabaseServer(directory / "postgres", self.certificates)
        self.backing = Backing(self.kafka, self.postgres)
        self.port = pick_port()
        self.endpoint_url = f"http://{HOST}:{self.port}"
        self.log_file = directory / "ministack.log"
        self._interpreter = interpreter
        self._variables = variables or {}
        self._ministack: ChildProcess | None = None
        self.mappings: DeployedMappings | None = None

    def start(self) -> None:
        """Raises StartError or JarError."""
        self.postgres.start()
        self.kafka.start()
        self.backing.start()
        # Through env(1), because functions inherit all that ministack has.
        variables = [f"{name}={value}" for name, value in self._process_environment().items()]
        self._ministack = ChildProcess(
            "ministack",
            ["env", "-i", *variables, str(self._interpreter), str(LAUNCHER)],
            log_file=self.log_file,
        )
        self._ministack.start()
        self._ministack.wait_until(self._answers, timeout_seconds=_START_SECONDS)
        self.mappings = DeployedMappings(
            self.client("lambda", read_timeout=_FUNCTION_SECONDS, max_pool_connections=50),
            self.client("sqs", max_pool_connections=50),
            self.kafka.bootstrap_servers,
        )
        self.mappings.start()

    def stop(self) -> None:
        for part in (self.mappings, self._ministack, self.backing, self.kafka, self.postgres):
            if part is not None:
                part.stop()

    def __enter__(self) -> Self:
        try:
            self.start()
        except BaseException:
            self.stop()
            raise
        return self

    def client(self, service: str, **configuration: Any) -> Any:
        return boto3.client(
            service,  # type: ignore[call-overload]
            endpoint_url=self.endpoint_url,
            region_name=REGION,
            aws_access_key_id=ACCOUNT,
            aws_secret_access_key="emulated",  # noqa: S106  Any will do.
            config=Config(retries={"total_max_attempts": 1}, **configuration),
        )

    def environment(self) -> dict[str, str]:
        """What leads an AWS tool here, and to nowhere else."""
        return {
            "AWS_ENDPOINT_URL": self.endpoint_url,
            "AWS_ACCESS_KEY_ID": ACCOUNT,
            "AWS_SECRET_ACCESS_KEY": "emulated",
            "AWS_REGION": REGION,
            "AWS_DEFAULT_REGION": REGION,
            "AWS_CONFIG_FILE": os.devnull,
            "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
            "AWS_EC2_METADATA_DISABLED": "true",
        }

    def _process_environment(self) -> dict[str, str]:
        function_variables = {
            # The embedded broker knows no IAM.
            "replaced": {"KAFKA_AUTH": "none"},
            "added": {"DATABASE_CA_FILE": str(self.certificates.ca_file), **self._variables},
        }
        return {
            "PATH": os.environ.get("PATH", os.defpath),
            "LANG": "en_US.UTF-8",
            "TMPDIR": str(self.directory),
            # Lambda's Node.js runtime brings the AWS SDK along.
            "NODE_PATH": str(NODE_MODULES),
            "AUTH": "true",
            "BIND_HOST": HOST,
            "MINISTACK_HOST": HOST,
            "GATEWAY_PORT": str(self.port),
            "MINISTACK_REGION": REGION,
            "MINISTACK_MSK_BOOTSTRAP_SASL_IAM": self.kafka.bootstrap_servers,
            "EMULATOR_BACKING_URL": self.backing.url,
            "EMULATOR_FUNCTION_ENVIRONMENT": json.dumps(function_variables),
        }

    def _answers(self) -> bool:
        try:
            with _direct.open(f"{self.endpoint_url}/_ministack/ready", timeout=2) as answer:
                return bool(answer.status == 200)
        except (urllib.error.URLError, TimeoutError, ConnectionError):
            return False

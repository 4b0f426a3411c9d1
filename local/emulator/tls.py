"""TLS in front of the embedded PostgreSQL, whose build has none: what a client asks of Aurora, it gets here."""

import asyncio
import ssl
import struct
import threading
from concurrent.futures import Future
from typing import Final

from local.certificates import Certificates
from local.processes import HOST, Service

# PostgreSQL's documentation, "Message Formats": SSLRequest and GSSENCRequest.
_SSL_REQUEST: Final = struct.pack(">II", 8, 80877103)
_GSS_REQUEST: Final = struct.pack(">II", 8, 80877104)
_FIELDS: Final = b"SFATAL\0VFATAL\0C28000\0Mconnections without TLS are refused\0\0"
_REFUSAL: Final = b"E" + struct.pack(">I", len(_FIELDS) + 4) + _FIELDS
_CHUNK_BYTES: Final = 65_536


class TlsFront(Service):
    """Listens on a port of its own, and passes on what clients say over TLS; without TLS they are refused."""

    def __init__(self, port: int, certificates: Certificates) -> None:
        """`port` is the server's own, on this machine."""
        self._server_port = port
        self._context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        self._context.load_cert_chain(certificates.certificate_file, certificates.key_file)
        self._listening: Future[int] = Future()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run, name="TLS in front of PostgreSQL", daemon=True)

    @property
    def port(self) -> int:
        return self._listening.result()

    def start(self) -> None:
        self._thread.start()
        self._listening.result()

    def stop(self) -> None:
        if self._thread.is_alive():
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join()

    def _run(self) -> None:
        try:
            server = self._loop.run_until_complete(asyncio.start_server(self._serve, HOST, 0))
            self._listening.set_result(server.sockets[0].getsockname()[1])
            self._loop.run_forever()
            server.close()
            for task in asyncio.all_tasks(self._loop):
                task.cancel()
            self._loop.run_until_complete(asyncio.sleep(0))
        except OSError as error:
            self._listening.set_exception(error)
        finally:
            self._loop.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            request = await reader.readexactly(len(_SSL_REQUEST))
            if request == _GSS_REQUEST:
                writer.write(b"N")
                request = await reader.readexactly(len(_SSL_REQUEST))
            if request != _SSL_REQUEST:
                writer.write(_REFUSAL)
                await writer.drain()
                return
            writer.write(b"S")
            await writer.drain()
            await writer.start_tls(self._context)
            server_reader, server_writer = await asyncio.open_connection(HOST, self._server_port)
            await asyncio.gather(_pass_on(reader, server_writer), _pass_on(server_reader, writer))
        except (OSError, asyncio.IncompleteReadError):
            pass  # The client hangs up, which is its right.
        finally:
            writer.close()


async def _pass_on(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        while data := await reader.read(_CHUNK_BYTES):
            writer.write(data)
            await writer.drain()
    finally:
        writer.close()

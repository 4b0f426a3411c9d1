"""A TCP proxy that can stop forwarding without closing anything, as a network does that lost a flow."""

import selectors
import socket
import threading
import time
from types import TracebackType
from typing import Self


class HalfOpenProxy:
    """Forwards to `port` on this machine; `delay_seconds` holds back whatever comes, each time."""

    def __init__(self, port: int, *, delay_seconds: float = 0) -> None:
        self._target = ("127.0.0.1", port)
        self._delay_seconds = delay_seconds
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=100)
        self._lock = threading.Lock()
        self._pairs: list[tuple[socket.socket, socket.socket, threading.Event]] = []
        self._silent = False
        self.port: int = self._listener.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def freeze(self, *, new_ones: bool = False) -> None:
        """Forward nothing more on the connections there are, nor on later ones if `new_ones`; both ends stay open."""
        with self._lock:
            self._silent = new_ones
            for _, _, frozen in self._pairs:
                frozen.set()

    def serve_new_ones(self) -> None:
        """Forward on connections that are opened from now on; frozen ones stay frozen."""
        with self._lock:
            self._silent = False

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._listener.close()
        with self._lock:
            for near, far, frozen in self._pairs:
                frozen.set()
                near.close()
                far.close()

    def _accept(self) -> None:
        while True:
            try:
                near, _ = self._listener.accept()
                far = socket.create_connection(self._target)
            except OSError:
                return
            frozen = threading.Event()
            with self._lock:
                if self._silent:
                    frozen.set()
                self._pairs.append((near, far, frozen))
            threading.Thread(target=self._forward, args=(near, far, frozen), daemon=True).start()

    def _forward(self, near: socket.socket, far: socket.socket, frozen: threading.Event) -> None:
        try:
            with selectors.DefaultSelector() as selector:
                selector.register(near, selectors.EVENT_READ, far)
                selector.register(far, selectors.EVENT_READ, near)
                while not frozen.is_set():
                    for key, _ in selector.select(timeout=0.05):
                        if frozen.is_set():
                            return
                        assert isinstance(key.fileobj, socket.socket)
                        data = key.fileobj.recv(1 << 16)
                        if not data:
                            near.close()
                            far.close()
                            return
                        time.sleep(self._delay_seconds)
                        key.data.sendall(data)
        except (OSError, ValueError):
            pass  # One end is gone, or the proxy was closed.

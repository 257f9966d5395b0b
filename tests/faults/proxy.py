"""A TCP proxy that can be slow or refuse: what stands between a server and who asks it."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from urllib.parse import urlsplit

from deploy.local.settings import free_port

CHUNK = 1 << 16


class Proxy:
    """Passes bytes on, from its own event loop in a thread. `delay_s` is waited for before each answer is passed on."""

    def __init__(self, target_port: int) -> None:
        self.port = free_port()
        self.delay_s = 0.0
        self._target_port = target_port
        self._loop = asyncio.new_event_loop()
        self._server: asyncio.Server | None = None
        self._open: set[asyncio.StreamWriter] = set()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        self.accept()

    def accept(self) -> None:
        """Listen."""
        self._run(self._listen())

    def refuse(self) -> None:
        """Stop listening and break every connection, as a server does that is gone."""
        self._run(self._break())

    def lead_to(self, target_port: int) -> None:
        """Bring new connections to another server; those that are open stay, as when an address moves."""
        self._target_port = target_port

    def close(self) -> None:
        """End the thread."""
        self.refuse()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(5)

    def _run(self, work: object) -> None:
        asyncio.run_coroutine_threadsafe(work, self._loop).result(10)  # type: ignore[arg-type]

    async def _listen(self) -> None:
        if self._server is None:
            self._server = await asyncio.start_server(self._serve, "127.0.0.1", self.port)

    async def _break(self) -> None:
        if self._server is not None:
            self._server.close()
            self._server = None
        for writer in list(self._open):
            writer.transport.abort()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            target_reader, target_writer = await asyncio.open_connection("127.0.0.1", self._target_port)
        except OSError:
            writer.transport.abort()
            return
        self._open |= {writer, target_writer}
        try:
            await asyncio.gather(
                self._pass_on(reader, target_writer, False), self._pass_on(target_reader, writer, True)
            )
        finally:
            self._open -= {writer, target_writer}

    async def _pass_on(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, answers: bool) -> None:
        """What is read now is written `delay_s` later: a delay is not a limit of what passes."""
        queue: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue()
        writing = asyncio.create_task(self._write(queue, writer))
        with contextlib.suppress(OSError):
            while chunk := await reader.read(CHUNK):
                queue.put_nowait((self._loop.time() + (self.delay_s if answers else 0.0), chunk))
        queue.put_nowait((0.0, b""))
        await writing

    async def _write(self, queue: asyncio.Queue[tuple[float, bytes]], writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while True:
                due, chunk = await queue.get()
                if not chunk:
                    break
                if (early := due - self._loop.time()) > 0:
                    await asyncio.sleep(early)
                writer.write(chunk)
                await writer.drain()
        writer.close()


@contextmanager
def proxied(address: str) -> Iterator[tuple[Proxy, str]]:
    """A proxy before an address, and the address as whoever asks should have it: a URL stays one."""
    url = urlsplit(address if "//" in address else f"//{address}")
    proxy = Proxy(int(url.port or 0))
    try:
        yield proxy, address.replace(f":{url.port}", f":{proxy.port}")
    finally:
        proxy.close()

"""A small HTTP server in a process of its own: GET only, every answer ready in memory before the first request.

It takes a few percent of a core, so that the demo measures the pool and not its server. It ends when its standard input
does, that is, with the demo, however the demo ends.
"""

from __future__ import annotations

import asyncio
import signal
import socket
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

LEFT_OUT = {"site-packages", "dist-packages", "__pycache__", "test", "tests", "idle_test"}
REQUEST_LIMIT_BYTES = 64 * 1024


@contextmanager
def serve(root: Path) -> Iterator[str]:
    """Serve the Python files under `root` for the length of the block. Yields the address; its `/` lists the files."""
    command = [sys.executable, "-m", __spec__.name, str(root)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdin is not None
        assert server.stdout is not None
        try:
            yield f"http://127.0.0.1:{int(server.stdout.readline())}"
        finally:
            server.stdin.close()


class FileServer(asyncio.Protocol):
    """One connection. Requests on it are answered in turn."""

    def __init__(self, answers: dict[bytes, bytes]) -> None:
        self.answers = answers
        self.received = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        self.received += data
        while (end := self.received.find(b"\r\n\r\n")) >= 0:
            method, _, rest = self.received[:end].partition(b" ")
            self.received = self.received[end + 4 :]
            target = rest.partition(b" ")[0]
            known = self.answers.get(target) if method == b"GET" else None
            self.transport.write(known or answer(b"404 Not Found", b"no such file\n"))
        if len(self.received) > REQUEST_LIMIT_BYTES:
            self.transport.close()


def answer(status: bytes, body: bytes) -> bytes:
    """A whole HTTP response."""
    return b"HTTP/1.1 %b\r\nContent-Type: text/plain\r\nContent-Length: %d\r\n\r\n%b" % (status, len(body), body)


def load(root: Path) -> dict[bytes, bytes]:
    """The response for every Python file under `root`, and for `/` their list."""
    files = sorted(path.relative_to(root) for path in root.rglob("*.py"))
    files = [path for path in files if not LEFT_OUT.intersection(path.parts)]
    answers = {b"/" + bytes(path): answer(b"200 OK", (root / path).read_bytes()) for path in files}
    return {b"/": answer(b"200 OK", b"\n".join(answers)), **answers}


async def main(root: Path) -> None:
    answers = load(root)
    listener = socket.create_server(("127.0.0.1", 0), backlog=512)
    loop = asyncio.get_running_loop()
    orphaned = asyncio.Event()
    loop.add_reader(sys.stdin.fileno(), orphaned.set)
    server = await loop.create_server(lambda: FileServer(answers), sock=listener)
    print(listener.getsockname()[1], flush=True)
    await orphaned.wait()
    server.close()


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the demo's to handle
    try:
        asyncio.run(main(Path(sys.argv[1])))
    except (KeyboardInterrupt, OSError):  # the demo is gone, perhaps before it was told the port
        pass

"""Where stolen bytes would go, a server of downloads, and the metadata address: usage DIRECTORY.

127.0.0.1:9000      DIRECTORY/sink has every byte that came
169.254.169.254:80  DIRECTORY/metadata has every byte that came
127.0.0.1:8000      answers every request with DIRECTORY/download, after a while
"""

from __future__ import annotations

import socket
import sys
import threading
import time
from pathlib import Path

DELAY = 0.4  # s, as over a real network


def accept(server: socket.socket, target: Path | None, body: bytes) -> None:
    while True:
        connection, _ = server.accept()
        threading.Thread(target=serve, args=(connection, target, body), daemon=True).start()


def serve(connection: socket.socket, target: Path | None, body: bytes) -> None:
    """Keeps what comes in `target`; without one it answers."""
    with connection:
        try:
            while chunk := connection.recv(65536):
                if target is None:
                    time.sleep(DELAY)
                    head = b"HTTP/1.0 200 OK\r\nContent-Length: %d\r\n\r\n"
                    connection.sendall(head % len(body) + body)
                    return
                with target.open("ab") as file:
                    file.write(chunk)
        except OSError:
            return  # whoever was sending was killed


def main(directory: Path) -> None:
    body = (directory / "download").read_bytes()
    places = (
        (("127.0.0.1", 9000), directory / "sink"),
        (("169.254.169.254", 80), directory / "metadata"),
        (("127.0.0.1", 8000), None),
    )
    for address, target in places:
        if target:
            target.touch()
        server = socket.create_server(address)
        threading.Thread(target=accept, args=(server, target, body), daemon=True).start()
    (directory / "ready").touch()
    threading.Event().wait()


if __name__ == "__main__":
    main(Path(sys.argv[1]))

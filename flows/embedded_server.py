"""The process of an embedded Prefect API; `flows.embedded` starts it, and says what it is for.

It imports nothing of ours: settings and stores would be half a second of CPU time more.
"""

from __future__ import annotations

import os
import socket
import sqlite3
import sys
import threading
import time
from collections.abc import Callable
from contextlib import closing, suppress
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import uvicorn

READY = b"ready\n"
"""Line on stdout that says that the server answers."""


def serve(listener_fd: int, database: Path, template: Path) -> None:
    """Run the server until stdin ends."""
    os.chdir(database.parent)  # Prefect, when it is imported, reads files of the directory it is in
    import uvicorn
    from prefect.server.api.server import create_app

    class Server(uvicorn.Server):
        async def startup(self, sockets: list[socket.socket] | None = None) -> None:
            await super().startup(sockets)
            if self.started:
                _keep_template(database, template)
                with suppress(OSError):  # the owner is gone already
                    os.write(1, READY)

    app = create_app(ephemeral=True)
    config = uvicorn.Config(app, log_level="error", lifespan="on", timeout_graceful_shutdown=3)
    server = Server(config)
    threading.Thread(target=_follow_stdin, args=[server], daemon=True).start()
    with socket.socket(fileno=listener_fd) as listener:
        server.run(sockets=[listener])


def _keep_template(database: Path, template: Path) -> None:
    """Keep the migrated, still empty database for the experiments to come."""
    if template.exists():
        return
    mine = template.with_name(f"{template.name}.{os.getpid()}")
    with closing(sqlite3.connect(database)) as source, closing(sqlite3.connect(mine)) as copy:
        source.backup(copy)
    mine.replace(template)


def _follow_stdin(
    server: uvicorn.Server,
    *,
    linger_seconds: float = 0.7,
    grace_seconds: float = 8.0,
    sleep: Callable[[float], None] = time.sleep,
) -> None:
    while os.read(0, 4096):
        pass
    sleep(linger_seconds)  # the last task states are still on their way into the database
    server.should_exit = True
    sleep(grace_seconds)
    os._exit(1)  # something hangs; nothing of value is left in here


if __name__ == "__main__":
    serve(int(sys.argv[1]), Path(sys.argv[2]), Path(sys.argv[3]))

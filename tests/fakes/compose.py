"""The services of `infra/compose.yaml` as processes of this machine, where there is no Docker.

Each service's own command is run, with the environment that Compose would give it. What containers
have and processes do not is replaced: names of hosts by loopback, ports by free ones, volumes by
directories, and the start script of PostgreSQL's image by `initdb`.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import yaml
from dotenv import dotenv_values

from tests.fakes.control_plane import free_port, wait_for

ROOT = Path(__file__).parents[2]
COMPOSE = ROOT / "infra" / "compose.yaml"
PROGRAMS = ("postgres", "initdb", "createdb", "pg_isready", "rclone")
"""Programs that come from elsewhere, as the images do."""
_VARIABLE = re.compile(r"\$\{(\w+)(?::([-?])([^}]*))?\}")


def missing_programs() -> list[str]:
    """Programs that this machine lacks."""
    return [name for name in PROGRAMS if shutil.which(name) is None]


def filled(value: str, variables: Mapping[str, str]) -> str:
    """Fill `${NAME}`, `${NAME:-default}` and `${NAME:?reason}` in, as Compose does."""

    def fill(match: re.Match[str]) -> str:
        name, kind, rest = match.groups()
        found = variables.get(name, "")
        if not found and kind == "?":
            raise ValueError(rest)
        return found or (rest if kind == "-" else "")

    return _VARIABLE.sub(fill, value)


class ByHand:
    """Starts the services in the order of their conditions, and ends them.

    Example: `with ByHand(tmp_path) as services: services.command("worker", ["tsgb", "doctor"])`
    """

    def __init__(self, home: Path) -> None:
        """Choose ports.

        Args:
            home: Directory with the `.env`; volumes and logs are made in it.
        """
        self.home = home
        self.declared: dict[str, Any] = yaml.safe_load(COMPOSE.read_text())["services"]
        self.variables = {k: v or "" for k, v in dotenv_values(home / ".env").items()}
        (home / ".env").unlink(
            missing_ok=True
        )  # where a container is, no flow could read it either
        self.ports = {name: free_port() for name in self.declared}
        self.running: dict[str, subprocess.Popen[bytes]] = {}

    def __enter__(self) -> Self:
        try:
            for name in self.in_order():
                self.start(name)
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.stop()

    def in_order(self) -> Iterator[str]:
        """Yield the services, each after those that it depends on."""
        left = {n: s for n, s in self.declared.items() if not s.get("profiles")}
        while left:
            ready = [n for n, s in left.items() if not set(s.get("depends_on", ())) & set(left)]
            assert ready, f"{sorted(left)} wait for each other"
            for name in ready:
                del left[name]
                yield name

    def start(self, name: str) -> None:
        """Start a service, and wait until it is healthy, or until its one command has ended."""
        service = self.declared[name]
        if name == "database":
            self._make_database()
        with (self.home / f"{name}.log").open("ab") as log:
            process = subprocess.Popen(
                self.words(name),
                env=self.environment(name),
                cwd=ROOT,
                stdout=log,
                stderr=log,
                user=self._user(name),
            )
        if "healthcheck" not in service:
            assert process.wait(180) == 0, (self.home / f"{name}.log").read_text()
            return
        self.running[name] = process
        wait_for(f"{name} to be healthy", lambda: self.is_healthy(name), 180)

    def is_healthy(self, name: str) -> bool:
        """Whether the health check of a service passes."""
        first, *words = self.declared[name]["healthcheck"]["test"]
        assert first == "CMD"
        if words[:2] == ["nc", "-z"]:  # of the image's own system
            with socket.socket() as probe:
                return probe.connect_ex((words[2], self.ports[name])) == 0
        done = subprocess.run(
            [self._local(word, name) for word in words],
            env=self.environment(name),
            capture_output=True,
            timeout=30,
            check=False,
        )
        return done.returncode == 0

    def stop(self) -> None:
        """End the services as Compose does, the last one first."""
        for name, process in reversed(self.running.items()):
            process.send_signal(signal.SIGINT if name == "database" else signal.SIGTERM)
            try:
                process.wait(90)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        self.running.clear()

    def command(self, name: str, words: list[str]) -> subprocess.CompletedProcess[str]:
        """Run a command in a service, as `docker compose exec` does."""
        return subprocess.run(
            [self._local(word, name) for word in words],
            env=self.environment(name),
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=900,
            check=False,
        )

    # -- what takes the place of a container -----------------------------------------------------

    def words(self, name: str) -> list[str]:
        """Return the command line of a service."""
        if name == "database":
            own = ["-D", str(self._volume("database")), "-p", str(self.ports[name])]
            return ["postgres", *own, "-h", "127.0.0.1", "-k", str(self.home / "socket")]
        entry = ["rclone"] if name == "webdav" else []
        return [
            *entry,
            *(self._local(w, name) for w in shlex.split(self.declared[name]["command"])),
        ]

    def environment(self, name: str) -> dict[str, str]:
        """Return the environment that Compose would give a service, below the one of its image."""
        service = self.declared[name]
        own = {
            key: self._local(filled(value, self.variables), name)
            for key, value in service.get("environment", {}).items()
        }
        path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
        system = {"PATH": path, "HOME": str(self.home), "LANG": "C.UTF-8"}
        image = {
            "PREFECT_HOME": str(self._volume("flows") / f"prefect-{name}"),
            "TSGB_CACHE_DIR": str(self._volume("flows") / "cache"),
            "DO_NOT_TRACK": "1",
        }
        where = {
            "PGHOST": "127.0.0.1",
            "PGPORT": str(self.ports["database"]),
            "PREFECT_WORKER_WEBSERVER_PORT": str(self.ports[name]),
            "PREFECT_WORKER_QUERY_SECONDS": "1",
        }
        file = self.variables if "env_file" in service else {}
        return {**system, **image, **where, **file, **own}

    def _local(self, word: str, name: str) -> str:
        """Replace hosts, ports, directories and programs by those of this machine."""
        server, webdav = self.ports["server"], self.ports["webdav"]
        for old, new in {
            "server:4200": f"127.0.0.1:{server}",
            "127.0.0.1:4200": f"127.0.0.1:{server}",
            "webdav:8080": f"127.0.0.1:{webdav}",
            "127.0.0.1:8080": f"127.0.0.1:{self.ports[name]}",
        }.items():
            word = word.replace(old, new)
        whole = {
            "4200": str(server),
            "8080": str(webdav),
            ":8080": f"127.0.0.1:{webdav}",
            "5432": str(self.ports["database"]),
            "0.0.0.0": "127.0.0.1",  # noqa: S104 - it is what is replaced
            "database": "127.0.0.1",
            "/data": str(self._volume("store")),
            "python3": sys.executable,
        }
        return whole.get(word, word)

    def _volume(self, name: str) -> Path:
        path = self.home / name
        path.mkdir(exist_ok=True)
        return path

    def _user(self, name: str) -> str | None:
        """The user of a process; PostgreSQL refuses to be run by root."""
        return "nobody" if name == "database" and os.geteuid() == 0 else None

    def _make_database(self) -> None:
        """Do what the start script of the image does with an empty volume."""
        data, wanted = self._volume("database"), self.environment("database")
        self._volume("socket")
        user = self._user("database")
        secret = self.home / "password"
        secret.write_text(wanted["POSTGRES_PASSWORD"])
        if user is not None:
            for parent in [self.home, *self.home.parents][:3]:
                parent.chmod(parent.stat().st_mode | 0o11)
            for path in (data, self.home / "socket", secret):
                shutil.chown(path, user)
        role = wanted["POSTGRES_USER"]
        for words in (
            ["initdb", "-D", str(data), "-U", role, "--pwfile", str(secret), "-A", "scram-sha-256"],
            self.words("database"),
        ):
            with (self.home / "database.log").open("ab") as log:
                process = subprocess.Popen(words, env=wanted, user=user, stdout=log, stderr=log)
            if words[0] == "initdb":
                assert process.wait(120) == 0, (self.home / "database.log").read_text()
        secret.unlink()
        try:
            wait_for("the database", lambda: self.is_healthy("database"), 60)
            done = subprocess.run(
                ["createdb", "-U", role, wanted["POSTGRES_DB"]],  # noqa: S607 - found on PATH
                env={**wanted, "PGPASSWORD": wanted["POSTGRES_PASSWORD"]},
                capture_output=True,
                text=True,
                check=False,
            )
            assert done.returncode == 0, done.stderr
        finally:
            process.send_signal(signal.SIGINT)
            process.wait(60)

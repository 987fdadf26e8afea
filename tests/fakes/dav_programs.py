"""WebDAV servers that other people run, on loopback: rclone, Apache mod_dav, nginx with dav-ext.

    with run_program("rclone", directory) as url: ...

Started by root, they run as nobody, who gets the directory; everything in it is made through them.

    with run_for_two("apache", directory) as place: ...

serves two users, each of whom has a folder of his own.
"""

from __future__ import annotations

import base64
import hashlib
import os
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import pytest

from tests.fakes.dav_server import (
    MACHINES_PASSWORD,
    MACHINES_USER,
    PASSWORD,
    USER,
    dav_app,
    serve,
)
from tests.fakes.sentinels import leaking_files

START_SECONDS = 30.0
NGINX_MODULE = Path("/usr/lib/nginx/modules/ngx_http_dav_ext_module.so")
APACHE_MODULES = Path("/usr/lib/apache2/modules")

APACHE = """
ServerRoot {work}
ServerName localhost
PidFile {work}/pid
ErrorLog {work}/error.log
Listen 127.0.0.1:{port}
{modules}
DocumentRoot {root}
DavLockDB {work}/locks
{folders}
"""
APACHE_FOLDER = """
<Directory {folder}>
  Dav On
  AuthType Basic
  AuthName tsgb
  AuthUserFile {work}/users
  Require {who}
</Directory>
"""
RCLONE_USERS = """#!/bin/sh
# The auth proxy: who asks, by pass and user in JSON, is answered with the folder that he gets.
asked=$(cat)
case $asked in
  *"\"$STORE_PASS\""*'"{user}"'*) folder=runs ;;
  *"\"$MACHINES_PASS\""*'"{machines}"'*) folder=machines ;;
  *) exit 1 ;;
esac
printf '{{"type": "local", "_root": "{root}/%s"}}' "$folder"
"""
NGINX = """
load_module {module};
daemon off;
worker_processes 1;
pid {work}/pid;
error_log {work}/error.log;
events {{}}
http {{
  access_log off;
  client_max_body_size 0;
  client_body_temp_path {work}/body;
  proxy_temp_path {work}/proxy;
  fastcgi_temp_path {work}/fastcgi;
  uwsgi_temp_path {work}/uwsgi;
  scgi_temp_path {work}/scgi;
  server {{
    listen 127.0.0.1:{port};
    root {root};
    auth_basic tsgb;
    auth_basic_user_file {work}/users;
    location / {{
      dav_methods PUT DELETE MKCOL COPY MOVE;
      dav_ext_methods PROPFIND OPTIONS;
    }}
  }}
}}
"""


@dataclass(frozen=True)
class Start:
    """How to start a program."""

    command: Sequence[str]
    environment: Mapping[str, str] = field(default_factory=dict)


def find(program: str) -> str:
    """Its path; skips the test where it is not installed."""
    found = shutil.which(program, path=f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/local/sbin")
    if found is None:
        pytest.skip(f"{program} is not installed")
    return found


def rclone(root: Path, work: Path, port: int) -> Start:
    command = [find("rclone"), "serve", "webdav", str(root), "--addr", f"127.0.0.1:{port}"]
    secrets = {"RCLONE_USER": USER, "RCLONE_PASS": PASSWORD, "RCLONE_CONFIG": str(work / "none")}
    return Start([*command, "--dir-cache-time", "0s"], secrets)


def rclone_for_two(root: Path, work: Path, port: int) -> Start:
    users = work / "users.sh"
    users.write_text(RCLONE_USERS.format(user=USER, machines=MACHINES_USER, root=root))
    users.chmod(0o755)
    command = [find("rclone"), "serve", "webdav", "--addr", f"127.0.0.1:{port}"]
    secrets = {"STORE_PASS": PASSWORD, "MACHINES_PASS": MACHINES_PASSWORD}
    named = {**secrets, "RCLONE_CONFIG": str(work / "none")}
    return Start([*command, "--auth-proxy", str(users), "--dir-cache-time", "0s"], named)


def apache(root: Path, work: Path, port: int) -> Start:
    folders = APACHE_FOLDER.format(work=work, folder=root, who="valid-user")
    return _apache(root, work, port, folders)


def apache_for_two(root: Path, work: Path, port: int) -> Start:
    whose = {"runs": f"user {USER}", "machines": f"user {MACHINES_USER}"}
    folders = [
        APACHE_FOLDER.format(work=work, folder=root / name, who=who) for name, who in whose.items()
    ]
    return _apache(root, work, port, "".join(folders))


def _apache(root: Path, work: Path, port: int, folders: str) -> Start:
    program = find("apache2")
    names = ("mpm_event", "authn_core", "authn_file", "authz_core", "authz_user", "auth_basic")
    modules = [
        f"LoadModule {name}_module {APACHE_MODULES}/mod_{name}.so"
        for name in (*names, "dav", "dav_fs")
        if (APACHE_MODULES / f"mod_{name}.so").exists()
    ]
    lines = "\n".join(modules)
    text = APACHE.format(work=work, root=root, port=port, modules=lines, folders=folders)
    (work / "conf").write_text(text)
    return Start([program, "-DFOREGROUND", "-f", str(work / "conf")])


def nginx(root: Path, work: Path, port: int) -> Start:
    program = find("nginx")
    if not NGINX_MODULE.exists():
        pytest.skip("nginx's module dav-ext is not installed")
    text = NGINX.format(work=work, root=root, port=port, module=NGINX_MODULE)
    (work / "conf").write_text(text)
    return Start([program, "-c", str(work / "conf"), "-e", str(work / "error.log")])


PROGRAMS: Mapping[str, Callable[[Path, Path, int], Start]] = {
    "rclone": rclone,
    "apache": apache,
    "nginx": nginx,
}


@dataclass(frozen=True)
class TwoFolders:
    """What one server has for two users."""

    store: str
    """URL of the runs, for `USER`."""
    exchange: str
    """URL of the exchange, for `MACHINES_USER`."""
    runs: Path
    """Directory of the runs."""
    machines: Path
    """Directory of the exchange."""


FOR_TWO: Mapping[str, tuple[Callable[[Path, Path, int], Start], str, str]] = {
    "rclone": (rclone_for_two, "", ""),  # each sees his folder as the root
    "apache": (apache_for_two, "/runs", "/machines"),
}
"""How to start each, and where it has the folders."""


@contextmanager
def run_program(name: str, directory: Path) -> Iterator[tuple[str, Path]]:
    """Run a server; yields its URL, and the directory that it serves below the given one."""
    with _running(PROGRAMS[name], directory, "/") as url:
        yield url, directory / "root"


@contextmanager
def run_for_two(name: str, directory: Path) -> Iterator[TwoFolders]:
    """Run a server with two users; `wsgidav` in this process, others as programs."""
    root = directory / "root"
    folders = root / "runs", root / "machines"
    if name == "wsgidav":
        for folder in folders:
            folder.mkdir(parents=True)
        with serve(dav_app(folders[0], machines=folders[1])) as url:
            yield TwoFolders(url, f"{url}/machines", *folders)
        return
    start, store, exchange = FOR_TWO[name]
    with _running(start, directory, f"{store}/", ("runs", "machines")) as url:
        yield TwoFolders(f"{url}{store}", f"{url}{exchange}", *folders)


@contextmanager
def _running(
    program: Callable[[Path, Path, int], Start],
    directory: Path,
    asked: str,
    folders: Sequence[str] = (),
) -> Iterator[str]:
    """Run a program until it answers `USER`; yields its URL."""
    root, work = directory / "root", directory / "work"
    made = [root, work, *(root / name for name in folders)]
    for path in made:
        path.mkdir()
    passwords = {USER: PASSWORD, MACHINES_USER: MACHINES_PASSWORD}
    digests = {
        user: base64.b64encode(hashlib.sha1(password.encode()).digest()).decode()  # noqa: S324
        for user, password in passwords.items()
    }
    lines = [f"{user}:{{SHA}}{digest}\n" for user, digest in digests.items()]
    (work / "users").write_text("".join(lines))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    start = program(root, work, port)
    nobody = "nobody" if os.geteuid() == 0 else None
    if nobody is not None:
        for path in (directory, *made):
            shutil.chown(path, nobody)
    with (work / "output").open("wb") as output:
        process = subprocess.Popen(
            start.command,
            env={"PATH": os.environ.get("PATH", ""), "HOME": str(work), **start.environment},
            stdout=output,
            stderr=output,
            user=nobody,
        )
    try:
        url = f"http://127.0.0.1:{port}"
        _wait_for(f"{url}{asked}", process, work / "output")
        yield url
    finally:
        process.terminate()
        process.wait(START_SECONDS)
        assert leaking_files(directory) == []  # it lies outside of what is searched at the end


def _wait_for(url: str, process: subprocess.Popen[bytes], output: Path) -> None:
    deadline = time.monotonic() + START_SECONDS
    while True:
        assert process.poll() is None, output.read_text()
        try:
            answer = httpx.request("PROPFIND", url, auth=(USER, PASSWORD), headers={"Depth": "1"})
        except httpx.TransportError:
            assert time.monotonic() < deadline, output.read_text()
            time.sleep(0.1)
            continue
        assert answer.status_code == 207, answer.text
        return

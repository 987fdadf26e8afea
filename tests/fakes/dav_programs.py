"""WebDAV servers that other people run, on loopback: rclone, Apache mod_dav, nginx with dav-ext.

    with run_program("rclone", directory) as url: ...

Started by root, they run as nobody, who gets the directory; everything in it is made through them.
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

from tests.fakes.dav_server import PASSWORD, USER
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
<Directory {root}>
  Dav On
  AuthType Basic
  AuthName tsgb
  AuthUserFile {work}/users
  Require valid-user
</Directory>
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


def apache(root: Path, work: Path, port: int) -> Start:
    program = find("apache2")
    names = ("mpm_event", "authn_core", "authn_file", "authz_core", "authz_user", "auth_basic")
    modules = [
        f"LoadModule {name}_module {APACHE_MODULES}/mod_{name}.so"
        for name in (*names, "dav", "dav_fs")
        if (APACHE_MODULES / f"mod_{name}.so").exists()
    ]
    text = APACHE.format(work=work, root=root, port=port, modules="\n".join(modules))
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


@contextmanager
def run_program(name: str, directory: Path) -> Iterator[tuple[str, Path]]:
    """Run a server; yields its URL, and the directory that it serves below the given one."""
    root, work = directory / "root", directory / "work"
    for made in (root, work):
        made.mkdir()
    digest = base64.b64encode(hashlib.sha1(PASSWORD.encode()).digest()).decode()  # noqa: S324
    (work / "users").write_text(f"{USER}:{{SHA}}{digest}\n")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    start = PROGRAMS[name](root, work, port)
    nobody = "nobody" if os.geteuid() == 0 else None
    if nobody is not None:
        for path in (directory, root, work):
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
        _wait_for(url, process, work / "output")
        yield url, root
    finally:
        process.terminate()
        process.wait(START_SECONDS)
        assert leaking_files(directory) == []  # it lies outside of what is searched at the end


def _wait_for(url: str, process: subprocess.Popen[bytes], output: Path) -> None:
    deadline = time.monotonic() + START_SECONDS
    while True:
        assert process.poll() is None, output.read_text()
        try:
            answer = httpx.request(
                "PROPFIND", f"{url}/", auth=(USER, PASSWORD), headers={"Depth": "1"}
            )
        except httpx.TransportError:
            assert time.monotonic() < deadline, output.read_text()
            time.sleep(0.1)
            continue
        assert answer.status_code == 207, answer.text
        return

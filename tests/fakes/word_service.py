"""`tsgb serve` with a guard that counts words in place of an export, as a process of its own.

    with word_service("http://127.0.0.1:9/v1", on_block="error") as url: ...

A prompt with the word `bad` is unsafe, and one with the word `raise` cannot be judged.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def word_service(upstream: str, on_block: str = "refusal") -> Generator[str]:
    """Start it in front of a model service; give its address."""
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.fakes.word_service", upstream, on_block],
        stdout=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).parents[2],
    )
    assert process.stdout is not None
    try:
        yield process.stdout.readline().strip()
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


def main() -> None:
    from tests.fakes.word_guard import WordGuard
    from tsgb.serve.app import GuardService
    from tsgb.serve.proxy import BlockStyle, ProxyOptions
    from tsgb.serve.server import address_of, bind, run_server
    from tsgb.serve.upstream import Upstream

    upstream, on_block = sys.argv[1:]
    service = GuardService(
        WordGuard(),
        upstream=Upstream(upstream),
        proxy=ProxyOptions(on_block=BlockStyle(on_block)),
    )
    listener = bind("127.0.0.1", 0)
    url = address_of(*listener.getsockname()[:2])
    run_server(service.app(), listener, grace_seconds=5, on_start=lambda: print(url, flush=True))  # noqa: T201


if __name__ == "__main__":
    main()

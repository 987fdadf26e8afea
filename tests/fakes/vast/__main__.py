"""The simulator by itself.

uv run python -m tests.fakes.vast --port 8765 --seed 1 --hazard-per-hour 0.4 --virtual-clock
VAST_URL=http://127.0.0.1:8765 VAST_API_KEY=... uv run vastai search offers 'num_gpus=1'
"""

from __future__ import annotations

import argparse
import signal
import sys
import threading

from tests.fakes.vast.options import Options
from tests.fakes.vast.server import VastSimulator


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.fakes.vast", description=__doc__)
    parser.add_argument("--port", type=int, default=8765)
    parser.add_argument("--key", help="the account's; made up and shown if not given")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--hazard-per-hour", type=float, default=0.0)
    parser.add_argument("--rate-limits", action="store_true")
    time = parser.add_mutually_exclusive_group()
    time.add_argument("--virtual-clock", action="store_true", help="moves only by /_sim/clock")
    time.add_argument(
        "--speed", type=float, default=1.0, help="of the clock; 60: a minute a second"
    )
    given = parser.parse_args()
    options = Options(
        seed=given.seed, hazard_per_hour=given.hazard_per_hour, rate_limits=given.rate_limits
    )
    ended = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: ended.set())
    with VastSimulator(
        options, port=given.port, key=given.key, virtual=given.virtual_clock, speed=given.speed
    ) as vast:
        sys.stdout.write(f"VAST_URL={vast.url} VAST_API_KEY={vast.key}\n")
        sys.stdout.flush()
        ended.wait()


if __name__ == "__main__":
    main()

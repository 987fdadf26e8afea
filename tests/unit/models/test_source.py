"""What a model's name means, and what is refused before anything starts."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.fakes.chat_model import save_chat_model
from tests.fakes.hub_cache import cache_repository
from tests.fakes.users import other_user
from tsgb.errors import ConfigError, UsageError
from tsgb.models import smollm2
from tsgb.models.source import ModelFacts, ModelSource, SourceKind, causal_classes, inspect
from tsgb.setting_groups import HubSettings

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_chat_model(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture
def hub(tmp_path: Path) -> HubSettings:
    """Only the local cache."""
    return HubSettings(hf_cache=tmp_path / "hub", hf_offline=True)


@pytest.fixture
def look(tmp_path: Path, hub: HubSettings) -> Callable[..., ModelFacts]:
    def look(name: object, **more: Any) -> ModelFacts:
        return inspect(str(name), hub, tmp_path / "cache", **more)

    return look


@pytest.fixture
def changed(model: Path, tmp_path: Path) -> Callable[..., Path]:
    """A copy of the model with other settings; a setting of None is taken out."""

    def changed(file: str, **changes: Any) -> Path:
        copy = tmp_path / "changed"
        copy.mkdir()
        for path in model.iterdir():
            (copy / path.name).write_bytes(path.read_bytes())
        settings = json.loads((copy / file).read_text()) | changes
        kept = {name: value for name, value in settings.items() if value is not None}
        (copy / file).write_text(json.dumps(kept))
        return copy

    return changed


# -- names ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "kind", "stored", "label"),
    [
        ("Qwen/Qwen2.5-0.5B-Instruct", "hub", "Qwen/Qwen2.5-0.5B-Instruct@main", None),
        ("a/b@refs/pr/1", "hub", "a/b@refs/pr/1", None),
        (f"a/b@{COMMIT}", "hub", f"a/b@{COMMIT}", "a/b@0123456789ab"),
        ("smollm2", "package", smollm2.NAME, smollm2.NAME),
        (smollm2.NAME, "package", smollm2.NAME, smollm2.NAME),
        ("gguf:/models/x.Q4_0.gguf", "gguf", "gguf:/models/x.Q4_0.gguf", "x.Q4_0.gguf"),
    ],
)
def test_a_name_says_where_a_model_is(name: str, kind: str, stored: str, label: str | None) -> None:
    source = ModelSource.parse(name)
    assert (source.kind, source.name) == (SourceKind(kind), stored)
    assert ModelSource.parse(source.name) == source
    assert label is None or source.label == label


def test_a_directory_is_stored_with_its_full_path(
    model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(model.parent)
    for name in ("tiny", "./tiny", str(model)):
        source = ModelSource.parse(name)
        assert (source.kind, source.name) == (SourceKind.DIRECTORY, str(model))
        assert source.label == "tiny"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("gpt5", "unknown pretrained model 'gpt5': name a repository of the Hugging Face Hub"),
        ("a/b/c", "unknown pretrained model"),
        ("a/b@", "unknown pretrained model"),
        ("a b/c", "unknown pretrained model"),
        ("./absent", "'./absent' is a directory that does not exist"),
        ("/absent", "'/absent' is a directory that does not exist"),
    ],
)
def test_a_name_that_means_nothing_is_refused(name: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        ModelSource.parse(name)


def test_a_file_is_no_directory(tmp_path: Path) -> None:
    (tmp_path / "x.gguf").write_bytes(b"GGUF")
    with pytest.raises(ConfigError, match=r"x\.gguf' is a file: .* gguf:FILE"):
        ModelSource.parse(str(tmp_path / "x.gguf"))


# -- directories ---------------------------------------------------------------------------


@pytest.mark.parametrize(("shards", "dtype"), [(1, torch.float32), (3, torch.bfloat16)])
def test_a_directory_is_described(
    tmp_path: Path, look: Callable[..., ModelFacts], shards: int, dtype: torch.dtype
) -> None:
    directory = save_chat_model(tmp_path / "model", shards=shards, dtype=dtype)
    facts = look(directory)
    assert (facts.name, facts.family, facts.architecture) == (
        str(directory),
        "llama",
        "LlamaForCausalLM",
    )
    assert (facts.parameters, facts.layers) == (37752, 2)
    assert facts.dtype == str(dtype).removeprefix("torch.")
    assert facts.tokenizer == "PreTrainedTokenizerFast, 1200 tokens"
    assert facts.system_role


CONFIG, TOKENIZER = "config.json", "tokenizer_config.json"


@pytest.mark.parametrize(
    ("file", "changes", "message"),
    [
        (TOKENIZER, {"chat_template": None}, "no chat template: name the version that was tuned"),
        (TOKENIZER, {"chat_template": "{% if %}"}, "template cannot be rendered"),
        (TOKENIZER, {"chat_template": "{{ messages[0]['role'] }}"}, "drops the text of a message"),
        (
            CONFIG,
            {"model_type": "t5", "architectures": ["T5ForConditionalGeneration"]},
            r"transformers \S+ has no causal language model of the family 't5'",
        ),
        (
            CONFIG,
            {"architectures": ["LlamaForSequenceClassification"]},
            "is a LlamaForSequenceClassification, not a causal language model",
        ),
        (CONFIG, {"model_type": "novel"}, "no causal language model of the family 'novel'"),
        (
            CONFIG,
            {"model_type": "novel", "auto_map": {"AutoConfig": "own.Config"}},
            r"'?novel\)? needs code from its repository .auto_map., which is never run",
        ),
        (CONFIG, {"quantization_config": {"quant_method": "gptq"}}, "weights are quantised"),
    ],
    ids=[
        "no template",
        "template of another dialect",
        "template without slot",
        "encoder and decoder",
        "classifier",
        "unknown family",
        "remote code",
        "quantised",
    ],
)
def test_a_model_that_cannot_be_used_is_refused_in_one_line(
    changed: Callable[..., Path],
    look: Callable[..., ModelFacts],
    file: str,
    changes: dict[str, Any],
    message: str,
) -> None:
    directory = changed(file, **changes)
    with pytest.raises(ConfigError, match=message) as refused:
        look(directory)
    assert str(refused.value).startswith(f"model {directory}: ")
    assert "\n" not in str(refused.value)


def test_code_beside_a_family_that_transformers_has_is_ignored(
    changed: Callable[..., Path], look: Callable[..., ModelFacts]
) -> None:
    assert look(changed(CONFIG, auto_map={"AutoConfig": "own.Config"})).family == "llama"


def test_a_template_without_a_system_role_is_said(
    changed: Callable[..., Path], look: Callable[..., ModelFacts]
) -> None:
    template = (
        "{% for m in messages %}{% if m['role'] == 'system' %}{{ raise_exception('no') }}"
        "{% endif %}{{ m['content'] }}{% endfor %}"
    )
    assert not look(changed(TOKENIZER, chat_template=template)).system_role


@pytest.mark.parametrize(
    ("missing", "message"),
    [
        ("config.json", "there is no config.json"),
        ("model.safetensors", "neither model.safetensors nor"),
        ("tokenizer_config.json", "there is no tokenizer_config.json"),
        ("tokenizer.json", "tokenizer.json cannot be read"),
    ],
)
def test_a_missing_file_is_named(
    changed: Callable[..., Path], look: Callable[..., ModelFacts], missing: str, message: str
) -> None:
    directory = changed(CONFIG)
    (directory / missing).unlink()
    with pytest.raises(ConfigError, match=message):
        look(directory)


@pytest.mark.parametrize(
    ("file", "changes"),
    [
        (CONFIG, {"architectures": 5}),
        (CONFIG, {"text_config": "none"}),
        (CONFIG, {"num_hidden_layers": "two"}),
        (TOKENIZER, {"eos_token": {"text": "e"}}),
        (TOKENIZER, {"chat_template": [1, 2]}),
    ],
    ids=str,
)
def test_strange_values_are_one_line(
    changed: Callable[..., Path],
    look: Callable[..., ModelFacts],
    file: str,
    changes: dict[str, Any],
) -> None:
    directory = changed(file, **changes)
    with pytest.raises(ConfigError, match="has a configuration of another kind") as refused:
        look(directory)
    assert "\n" not in str(refused.value)


def test_masks_among_the_weights_are_not_counted(
    model: Path, tmp_path: Path, look: Callable[..., ModelFacts]
) -> None:
    copy = Path(shutil.copytree(model, tmp_path / "copy"))
    tensors = load_file(copy / "model.safetensors")
    masks = {"model.layers.0.attention.mask": torch.ones(64, 64, dtype=torch.bool)}
    save_file({**tensors, **masks}, copy / "model.safetensors")
    assert look(copy).parameters == 37752
    save_file(masks, copy / "model.safetensors")
    with pytest.raises(ConfigError, match="none of its weights is float32"):
        look(copy)


def test_a_directory_that_may_not_be_read(model: Path, look: Callable[..., ModelFacts]) -> None:
    with tempfile.TemporaryDirectory() as name:  # pytest's own directory is root's alone
        closed = Path(shutil.copytree(model, Path(name, "model")))
        Path(name).chmod(0o755)
        closed.chmod(0)
        for path in (closed, closed / "inside"):
            with other_user(), pytest.raises(ConfigError, match=r"cannot be read .*Permission den"):
                look(path)
        closed.chmod(0o755)


def test_an_absent_shard_is_named(tmp_path: Path, look: Callable[..., ModelFacts]) -> None:
    directory = save_chat_model(tmp_path / "model", shards=3)
    (directory / "model-00002-of-00003.safetensors").unlink()
    with pytest.raises(ConfigError, match=r"1 absent file.* model-00002-of-00003\.safetensors"):
        look(directory)


def test_the_families_are_those_of_transformers() -> None:
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    assert causal_classes() == dict(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)


# -- the hub's cache -----------------------------------------------------------------------


def test_a_branch_becomes_the_commit_that_it_points_at(
    model: Path, hub: HubSettings, look: Callable[..., ModelFacts]
) -> None:
    assert hub.hf_cache is not None
    commit = cache_repository(hub.hf_cache, "acme/tiny", model)
    pinned = f"acme/tiny@{commit}"
    assert look("acme/tiny").name == look("acme/tiny@main").name == look(pinned).name == pinned


def test_offline_and_not_in_the_cache_names_the_command(look: Callable[..., ModelFacts]) -> None:
    with pytest.raises(
        ConfigError,
        match=r"HF_HUB_OFFLINE allows no download: run `hf download acme/tiny --revision main`",
    ):
        look("acme/tiny")


def test_offline_with_half_of_a_model_names_the_command(
    tmp_path: Path, hub: HubSettings, look: Callable[..., ModelFacts]
) -> None:
    assert hub.hf_cache is not None
    model = save_chat_model(tmp_path / "model", shards=2)
    shard = "model-00002-of-00002.safetensors"
    commit = cache_repository(hub.hf_cache, "acme/tiny", model, without=[shard])
    with pytest.raises(
        ConfigError, match=rf"{shard}, and HF_HUB_OFFLINE .* acme/tiny --revision {commit}`"
    ):
        look("acme/tiny")


# -- rented machines -----------------------------------------------------------------------


def test_files_of_this_machine_are_not_for_rented_ones(
    model: Path, tmp_path: Path, look: Callable[..., ModelFacts]
) -> None:
    for name in (model, f"gguf:{tmp_path}/x.gguf"):
        with pytest.raises(UsageError, match="is on this machine, where a rented one cannot read"):
            look(name, for_rented=True)

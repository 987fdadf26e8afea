"""A hub on loopback: what is downloaded, and each refusal in one line."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from pydantic import SecretStr

from tests.fakes.chat_model import save_chat_model
from tests.fakes.hub_server import HubServer, hub_server
from tests.fakes.sentinels import leaks, sentinel
from tsgb.errors import ConfigError, HubUnreachable, UsageError
from tsgb.models.fetch import fetch
from tsgb.models.files import identity
from tsgb.models.source import ModelFacts, inspect
from tsgb.setting_groups import HubSettings

TOKENS = {name: sentinel(name) for name in ("stranger", "member", "unknown")}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_chat_model(tmp_path_factory.mktemp("models") / "tiny", shards=2)


@pytest.fixture
def server(model: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[HubServer]:
    monkeypatch.setenv("HF_TOKEN_PATH", str(tmp_path / "none"))
    with hub_server() as server:
        for name in ("acme/open", "acme/gated", "acme/private"):
            server.models[name] = model
        server.gated, server.private = {"acme/gated"}, {"acme/private"}
        server.tokens, server.members = {TOKENS["stranger"]}, {TOKENS["member"]}
        yield server


Settings = Callable[..., HubSettings]


@pytest.fixture
def settings(server: HubServer, tmp_path: Path) -> Settings:
    def settings(who: str | None = None, *, offline: bool = False) -> HubSettings:
        return HubSettings(
            hf_endpoint=server.url,
            hf_cache=tmp_path / "hub",
            hf_token=None if who is None else SecretStr(TOKENS[who]),
            hf_offline=offline,
        )

    return settings


def look(name: str, hub: HubSettings, *, for_rented: bool = False) -> ModelFacts:
    return inspect(name, hub, Path("unused"), for_rented=for_rented)


def test_a_look_downloads_no_weights_and_a_fetch_no_more_than_weights(
    server: HubServer, settings: Settings, model: Path
) -> None:
    facts = look("acme/open", settings())
    assert facts.name == f"acme/open@{server.commit('acme/open')}"
    assert facts.parameters == pytest.approx(37752, rel=0.05)
    assert facts.weight_bytes == sum(path.stat().st_size for path in model.glob("*.safetensors"))
    assert not [line for line in server.asked if line.endswith(".safetensors")]
    server.asked.clear()
    files = fetch(facts.name, settings(), Path("unused"))
    assert files.label == f"acme/open@{server.commit('acme/open')[:12]}"
    assert files.identity == identity(model)
    got = [line for line in server.asked if line.startswith("GET")]
    assert len(got) == 2
    assert all(line.endswith(".safetensors") for line in got)
    server.asked.clear()
    assert fetch(facts.name, settings(), Path("unused")) == files
    assert look(facts.name, settings()).parameters == 37752
    assert server.asked == [], "the local cache has it all"
    assert fetch("acme/open", settings(offline=True), Path("unused")) == files


@pytest.mark.parametrize(
    ("name", "who", "message"),
    [
        ("acme/none", None, "there is no model 'acme/none' on .* it is private and it needs HF_TO"),
        ("acme/none", "stranger", "there is no model 'acme/none' on .* your token may not read it"),
        ("acme/private", None, "there is no model 'acme/private' .* it needs HF_TOKEN"),
        ("acme/gated", None, "accept its conditions at http://.*/acme/gated, then set HF_TOKEN"),
        (
            "acme/gated",
            "stranger",
            "at http://.*/acme/gated, which the account of your token has no",
        ),
        (
            "acme/open",
            "unknown",
            "answers 401 for acme/open: set HF_TOKEN to a token that it accepts",
        ),
        ("acme/open@dev", None, "acme/open has no revision 'dev': see http"),
        (f"acme/open@{'0' * 40}", None, "acme/open has no revision '0000"),
    ],
)
def test_a_repository_that_may_not_be_read_is_refused_in_one_line(
    settings: Settings, name: str, who: str | None, message: str
) -> None:
    with pytest.raises(ConfigError, match=message) as refused:
        look(name, settings(who))
    assert "\n" not in str(refused.value)
    assert not leaks(str(refused.value))


def test_a_member_gets_a_gated_model_and_a_rented_machine_does_not(
    server: HubServer, settings: Settings
) -> None:
    for name in ("acme/gated", "acme/private"):
        assert look(name, settings("member")).family == "llama"
        with pytest.raises(UsageError, match="gated or private, and a rented machine gets no HF_T"):
            look(name, settings("member"), for_rented=True)
    assert look("acme/open", settings("member"), for_rented=True).family == "llama"
    assert server.asked[-1].startswith("HEAD /acme/open/resolve/")
    assert not server.asked[-1].endswith("+token")


def test_a_hub_that_does_not_answer_can_heal(server: HubServer, settings: Settings) -> None:
    server.broken = 503
    with pytest.raises(HubUnreachable, match=r"answers 503, and acme/open at main is not in the"):
        look("acme/open", settings())
    server.broken = 0
    pinned = look("acme/open", settings()).name
    server.broken = 503
    assert look("acme/open", settings()).name == pinned, "the branch as it was when last seen"


def test_a_hub_that_is_not_there(tmp_path: Path) -> None:
    nowhere = HubSettings(hf_endpoint="http://127.0.0.1:9", hf_cache=tmp_path)
    with pytest.raises(HubUnreachable, match=r"127\.0\.0\.1:9 does not answer, and acme/open"):
        look("acme/open", nowhere)

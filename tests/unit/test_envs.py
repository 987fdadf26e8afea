"""Building environments: which are found, and whose code is imported for them."""

from __future__ import annotations

import sys
from pathlib import Path
from random import Random

import pytest

from tsgb import SimpleJudge, envs
from tsgb.config import WorldConfig
from tsgb.envs import customise, make_environment
from tsgb.errors import ConfigError
from tsgb.judges.plugins import StrictJudge
from tsgb.plugins import Trust
from tsgb.targets.plugins import target_specs
from tsgb.types import Knowledge, Label, Response, Split

GLYPH = make_environment("glyph", world_seed=0)
HARMFUL = next(s for s in GLYPH.scenarios(Split.TEST) if s.harmful)
MODULE = """
from pathlib import Path
Path("imported").touch()
from tsgb.envs.glyph import GlyphEnvironment as World
def Fails(world_seed): raise SystemExit(0)
def Gives(world_seed): return 7
"""


@pytest.fixture
def mine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a module of the user's; it holds `imported` once the module ran."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "own_environment", raising=False)
    (tmp_path / "own_environment.py").write_text(MODULE)
    return tmp_path


def test_an_unknown_name() -> None:
    with pytest.raises(ConfigError, match="'mars': choose one of canary, glyph, or give module"):
        make_environment("mars", world_seed=0)


@pytest.mark.parametrize(
    "trust", [Trust(), Trust.of(None, "own_environment:Other"), Trust.of("own_environment")]
)
def test_a_module_that_this_user_did_not_name_is_not_imported(mine: Path, trust: Trust) -> None:
    with pytest.raises(ConfigError, match="--env own_environment:World, or with --trust-config"):
        make_environment("own_environment:World", world_seed=0, trust=trust)
    assert not (mine / "imported").exists()


@pytest.mark.parametrize("trust", [Trust.of("own_environment:World"), Trust.of(trust_config=True)])
def test_one_that_this_user_named_is(mine: Path, trust: Trust) -> None:
    assert make_environment("own_environment:World", world_seed=0, trust=trust).name == "glyph"
    assert (mine / "imported").exists()


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("own_environment:Nothing", "cannot be loaded: AttributeError"),
        ("own_environment:Fails", "cannot be built: SystemExit"),
        ("own_environment:Gives", "gives a int without .*judge"),
        ("no_such_module:World", "cannot be loaded: ModuleNotFoundError"),
    ],
)
def test_a_module_that_gives_no_environment(mine: Path, name: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make_environment(name, world_seed=0, trust=Trust.of(name))


class TestOptionsOfAWorld:
    def test_they_reach_it(self) -> None:
        world = make_environment("glyph", world_seed=0, world=WorldConfig(symbols=32))
        assert len(world.scenarios(Split.TEST)) == 256
        narrow = make_environment("canary", world_seed=0, world=WorldConfig(coverage=0.0))
        assert len(narrow.openings(Knowledge.INITIAL)) == 3

    def test_one_that_a_world_does_not_have(self) -> None:
        with pytest.raises(ConfigError, match=r"world\.symbols = 32: the environment 'canary'"):
            make_environment("canary", world_seed=0, world=WorldConfig(symbols=32))

    @pytest.mark.parametrize("symbols", [4, 18, 52])
    def test_a_size_that_a_world_cannot_have(self, symbols: int) -> None:
        with pytest.raises(ConfigError, match=rf"world\.symbols = {symbols}: .* multiple of 4"):
            make_environment("glyph", world_seed=0, world=WorldConfig(symbols=symbols))

    def test_a_world_of_the_users_that_takes_none(self, mine: Path) -> None:
        name = "own_environment:Gives"
        with pytest.raises(ConfigError, match=r"world\.coverage = 0\.5: .* takes no coverage"):
            make_environment(
                name, world_seed=0, world=WorldConfig(coverage=0.5), trust=Trust.of(name)
            )


def test_the_readme_shows_a_world_that_works(mine: Path) -> None:
    readme = (Path(envs.__file__).parent / "README.md").read_text()
    (mine / "my_world.py").write_text(readme.split("```")[1])
    env = make_environment("my_world:World", world_seed=0, trust=Trust.of("my_world:World"))
    assert env.name == "my-world"


class TestCustomise:
    def test_a_target_is_added_and_all_else_stays(self) -> None:
        env = customise(GLYPH, target_specs(["mine:Echo"]), None)
        assert [*env.targets()] == [*GLYPH.targets(), "Echo"]
        assert env.targets()["Echo"].role == "black_box"
        assert env.name == "glyph"
        response = Response(text="REFUSE")
        assert env.judge(HARMFUL, "x", response) == GLYPH.judge(HARMFUL, "x", response)
        assert env.demonstrations(Random(1), 3, Knowledge.INITIAL) == GLYPH.demonstrations(
            Random(1), 3, Knowledge.INITIAL
        )

    def test_a_name_that_is_taken(self) -> None:
        with pytest.raises(ConfigError, match="'T_s': rename your class"):
            customise(GLYPH, target_specs(["mine:T_s"]), None)

    def test_another_judge_decides(self) -> None:
        env = customise(GLYPH, {}, StrictJudge(SimpleJudge()))
        assert env.judge(HARMFUL, "x", Response(text="COMPLY")).label is Label.HARMFUL
        assert GLYPH.judge(HARMFUL, "x", Response(text="COMPLY")).label is Label.SAFE

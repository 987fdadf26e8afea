"""What README.md says is there, is there; what is there, README.md says."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import typer.main
import yaml

from tsgb.cli import app
from tsgb.config import Arm, Profile, RunConfig
from tsgb.errors import ExitCode
from tsgb.settings import Settings, load_settings

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()
EXPERIMENT = "pip install uv && uv run tsgb experiment"
TEST = "pip install uv && uv run poe test"


def section(title: str) -> str:
    """A section without its heading."""
    return re.split(
        r"^## ", README.partition(f"\n## {title}\n")[2], maxsplit=1, flags=re.MULTILINE
    )[0]


def blocks(text: str) -> list[str]:
    return re.findall(r"^```\w*\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


def rows(text: str) -> list[list[str]]:
    """Tables, without their heads."""
    lines = [line for line in text.splitlines() if line.startswith("| ")]
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    return [row for row in cells if row[0].startswith("`")]


def names(text: str) -> list[str]:
    return re.findall(r"`([^`\s]+)`", text)


def test_it_opens_with_the_two_commands() -> None:
    assert blocks(README)[:2] == [f"{EXPERIMENT}\n", f"{TEST}\n"]
    assert README.index(TEST) < 120


def test_ci_runs_the_test_command_and_nothing_else() -> None:
    lines = (ROOT / ".ci" / "run").read_text().splitlines()
    commands = [line for line in lines if line and not line.startswith(("#", "set -", "cd "))]
    assert commands == [TEST]
    assert (ROOT / ".ci" / "run").stat().st_mode & 0o111


def test_the_first_commands_are_word_for_word_those_of_the_seed() -> None:
    commands = blocks(section("See it"))[0].splitlines()
    assert commands == [
        "tsgb train-local --episodes 100 --checkpoint-interval 10",
        "tsgb eval-local --checkpoint-path ./checkpoints/latest",
    ]


def test_every_path_exists() -> None:
    paths = {name for name in names(README) if re.match(r"[\w.]+/[\w./-]*$", name)}
    paths -= {"./runs"}
    assert len(paths) > 15
    assert [path for path in paths if not (ROOT / path).exists()] == []


def mapped() -> dict[str, set[str]]:
    """The file map: its folders of source, and the modules in each, as "a b: comment; c: more"."""
    found: dict[str, set[str]] = {}
    folder = ""
    [tree] = blocks(section("File map"))
    for line in tree.splitlines():
        if line.startswith(" "):
            for group in filter(None, line.strip().split(";")):
                listed, colon, _ = group.partition(":")
                assert colon, f"{group!r} has no comment"
                found.setdefault(folder, set()).update(listed.split())
        else:
            folder = line.split()[0]
            assert (ROOT / folder).exists(), folder
    return found


def test_the_file_map_is_the_tree_on_disk() -> None:
    on_disk: dict[str, set[str]] = {}
    for top in ("tsgb", "flows"):
        for path in (ROOT / top).rglob("*.py"):
            if path.stem != "__init__":
                on_disk.setdefault(f"{path.parent.relative_to(ROOT)}/", set()).add(path.stem)
    assert mapped() == on_disk


def options() -> dict[str, set[str]]:
    """Every option of every command; arguments are named by place."""
    root: Any = typer.main.get_command(app)
    found: dict[str, set[str]] = {}

    def walk(command: Any, path: str) -> None:
        if hasattr(command, "commands"):
            for name, inner in command.commands.items():
                walk(inner, f"{path} {name}".strip())
            return
        found[path] = {opt for p in command.params for opt in p.opts if opt[:2] == "--"} - {
            "--help"
        }

    walk(root, "")
    return found


def test_every_option_is_in_the_table_with_its_commands() -> None:
    table = [row for row in rows(section("Commands and options")) if row[0].startswith("`--")]
    said = {option: row[1] for row in table for option in names(row[0])}
    known = options()
    assert set(said) == set().union(*known.values())
    for option, where in said.items():
        having = {path for path, opts in known.items() if option in opts}
        # A group alone means all of its commands.
        expanded: set[str] = set()
        for part in where.split(", "):
            if part in {"worker", "checkpoint", "manager", "machines"}:
                expanded |= {path for path in known if path.startswith(f"{part} ")}
            else:
                expanded.add(part if part in known else f"worker {part}")
        assert expanded == having, option
    text = section("Commands and options")
    for command in known:
        assert re.search(rf"`[^`]*\b{command.split()[-1]}\b", text), command


def test_profiles_arms_and_exit_codes() -> None:
    text = section("Commands and options")
    for word in (*Profile, Arm.SELFPLAY, Arm.SFT, Arm.FROZEN):
        assert f"`{word.value}`" in text
    [codes] = re.findall(r"Exit codes: (.*?)\.\n", text, re.DOTALL)
    assert {int(code) for code in re.findall(r"\d+", codes)} == {int(code) for code in ExitCode}


def test_every_part_of_the_configuration_is_documented() -> None:
    table = [row for row in rows(section("Commands and options")) if not row[0].startswith("`--")]
    said = [name for row in table for name in names(row[0])]
    assert sorted(said) == sorted(RunConfig.model_fields)


def variables() -> dict[str, Any]:
    fields = Settings.model_fields
    return {str(f.validation_alias or f"TSGB_{n.upper()}"): f for n, f in fields.items()}


def test_every_setting_is_in_the_table_and_in_the_example() -> None:
    said = [name for row in rows(section("Run it for real")) for name in names(row[0])]
    assert sorted(said) == sorted(variables())
    example = (ROOT / ".env.example").read_text()
    assert set(re.findall(r"^#([A-Z_]+)=", example, re.MULTILINE)) == set(variables())
    for line, before in zip(example.splitlines()[1:], example.splitlines(), strict=False):
        if re.match(r"#[A-Z_]+=", line):
            assert before.startswith("# "), f"{line} has no comment"


@pytest.mark.parametrize("name", [n for n, f in variables().items() if n.startswith("TSGB_")])
def test_defaults_of_the_example(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What stands in the example is the default, so that taking off its mark changes nothing."""
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    example = (ROOT / ".env.example").read_text()
    [value] = re.findall(rf"^#{name}=(.*)$", example, re.MULTILINE)
    field = variables()[name]
    default = field.get_default(call_default_factory=True)
    if isinstance(default, int | float) and name != "TSGB_MAX_PARALLEL":
        assert float(value) == default
    elif name == "TSGB_CACHE_DIR":
        assert Path(value).expanduser() == load_settings().cache_dir


def test_every_yaml_parses() -> None:
    files = [ROOT / ".pre-commit-config.yaml", *(ROOT / "deployments").glob("*.yaml")]
    assert len(files) >= 2
    for path in files:
        assert yaml.safe_load(path.read_text())


def test_no_hook_needs_a_host() -> None:
    config = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())
    assert [repo["repo"] for repo in config["repos"]] == ["local"]
    for hook in config["repos"][0]["hooks"]:
        assert hook["entry"].startswith("uv run ")

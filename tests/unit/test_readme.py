"""What README.md says is there, is there; what is there, README.md says."""

from __future__ import annotations

import itertools
import re
import tomllib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
import typer.main
import yaml

from tsgb.cli import app
from tsgb.config import Arm, Profile, RunConfig
from tsgb.errors import ExitCode
from tsgb.settings import Settings

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()
CLI = (ROOT / "tsgb" / "cli" / "README.md").read_text()
PAGES = [*ROOT.glob("*.md"), *(ROOT / "tests").glob("*.md"), *(ROOT / "tsgb").rglob("*.md")]
EXPERIMENT = "pip install uv && uv run tsgb experiment"
TEST = "pip install uv && uv run poe test"
MOST_WORDS = 1850
LONGEST_LINE = 160


def section(title: str, page: str = README) -> str:
    """A section without its heading."""
    after = page.partition(f"\n## {title}\n")[2]
    return re.split(r"^## ", after, maxsplit=1, flags=re.MULTILINE)[0]


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


def test_it_is_short_and_its_lines_can_be_read() -> None:
    assert len([word for word in README.split() if re.search(r"\w", word)]) <= MOST_WORDS
    prose = [line for line in README.splitlines() if not line.startswith("|")]
    assert [line for line in prose if len(line) > LONGEST_LINE] == []


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


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_path_exists(page: Path) -> None:
    """A path is relative to the repository or to the page."""
    paths = {name for name in names(page.read_text()) if re.match(r"[\w.]+/[\w./-]*$", name)}
    missing = [path for path in paths if not (ROOT / path).exists()]
    assert [path for path in missing if not (page.parent / path).exists() and path[0] != "."] == []


def test_every_command_exists() -> None:
    """Commands of `tsgb` in blocks and between backticks, with their options."""
    known = options()
    typed = [line for block in blocks(README) for line in block.splitlines()] + re.findall(
        r"`(tsgb [^`]+)`", README
    )
    commands = [line.partition(" #")[0].split()[1:] for line in typed if line.startswith("tsgb ")]
    assert len(commands) > 7
    for words in commands:
        [name] = [name for name in known if words[: len(name.split())] == name.split()]
        assert {word for word in words if word.startswith("--")} <= known[name], words


def test_the_folders_are_those_on_disk() -> None:
    tree = blocks(section("Folders"))[0].splitlines()
    listed = [line.partition(" ")[0] for line in tree]
    ignored = {line.strip("/") for line in (ROOT / ".gitignore").read_text().splitlines()}
    top = {path.name for path in ROOT.iterdir() if path.is_dir() and path.name[0] != "."}
    found = (top | {f"tsgb/{name}" for name in packages()}) - ignored - {"tsgb"}
    assert sorted(listed) == sorted(f"{name}/" for name in found)
    assert all(len(line.split()) > 2 for line in tree), "each has a line about it"


def packages() -> set[str]:
    return {path.parent.name for path in (ROOT / "tsgb").glob("*/__init__.py")}


def test_the_layers_that_are_drawn_are_enforced() -> None:
    config = tomllib.loads((ROOT / "pyproject.toml").read_text())
    contracts = config["tool"]["importlinter"]["contracts"]
    [layers] = [contract["layers"] for contract in contracts if contract["type"] == "layers"]
    enforced = depths(layers)
    drawn = depths(line[:39] for line in blocks(section("Folders"))[1].splitlines())
    assert packages() <= drawn.keys()
    for upper, lower in itertools.permutations(packages(), 2):
        if drawn[upper] < drawn[lower]:
            assert enforced[upper] < enforced[lower], f"{upper} above {lower}"


def depths(lines: Iterable[str]) -> dict[str, int]:
    """Number of the line that each name is in."""
    return {name: i for i, line in enumerate(lines) for name in re.findall(r"\w+", line)}


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
    table = rows(section("Options", CLI))
    said = {option: row[1] for row in table for option in names(row[0])}
    known = options()
    assert set(said) == set().union(*known.values())
    for option, where in said.items():
        having = {path for path, opts in known.items() if option in opts}
        # A group alone means all of its commands.
        expanded: set[str] = set()
        for part in where.split(", "):
            if part in {"worker", "checkpoint", "manager", "machines", "models"}:
                expanded |= {path for path in known if path.startswith(f"{part} ")}
            else:
                expanded.add(part if part in known else f"worker {part}")
        assert expanded == having, option
    text = section("Commands", CLI)
    for command in known:
        assert re.search(rf"`[^`]*\b{command.split()[-1]}\b", text), command


def test_profiles_arms_and_exit_codes() -> None:
    text = section("Commands", CLI) + section("Options", CLI)
    for word in (*Profile, Arm.SELFPLAY, Arm.SFT, Arm.FROZEN):
        assert f"`{word.value}`" in text
    [codes] = re.findall(r"Exit codes: (.*?)\.\n", text, re.DOTALL)
    assert {int(code) for code in re.findall(r"\d+", codes)} == {int(code) for code in ExitCode}


def test_every_part_of_the_configuration_is_documented() -> None:
    said = [name for row in rows(section("Configuration", CLI)) for name in names(row[0])]
    assert sorted(said) == sorted(RunConfig.model_fields)


def variables() -> dict[str, Any]:
    fields = Settings.model_fields
    return {str(f.validation_alias or f"TSGB_{n.upper()}"): f for n, f in fields.items()}


def test_eight_settings_are_shown_and_every_one_is_in_the_example() -> None:
    said = [name for row in rows(section("Run it for real")) for name in names(row[0])]
    assert len(said) == 8
    assert set(said) <= variables().keys()
    example = (ROOT / ".env.example").read_text()
    assert set(re.findall(r"^#([A-Z_]+)=", example, re.MULTILINE)) == set(variables())


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

"""An export appears whole or not at all, and never in the place of something."""

from __future__ import annotations

import errno
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from tests.fakes.command_line import Run
from tests.unit.export.conftest import names, refused
from tsgb.config import ModelConfig
from tsgb.errors import UsageError
from tsgb.export import directory as directories
from tsgb.export.directory import HubBase, hub_base
from tsgb.models.engine import Engine


def test_a_directory_with_something_in_it(tsgb: Run, here: Path) -> None:
    (here / "full").mkdir()
    (here / "full" / "mine").write_text("precious")
    (here / "file").write_text("precious")
    for name in ("full", "file"):
        refused(tsgb, here, f"{name} exists and is not empty", "../store/full", name)


def test_an_empty_directory_is_taken(tsgb: Run, here: Path) -> None:
    (here / "empty").mkdir()
    assert tsgb("export-guard", "../store/full", "empty").code == 0
    assert "guard.json" in names(here / "empty")


def test_a_place_that_cannot_be_written(tsgb: Run, here: Path) -> None:
    pattern = "/proc/nowhere/out: .*: choose another directory"
    refused(tsgb, here, pattern, "../store/full", "/proc/nowhere/out")


@pytest.mark.parametrize(
    ("failure", "code"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), 6),
        (OSError(errno.EIO, "Input/output error"), 2),
        (KeyboardInterrupt(), 130),
    ],
    ids=["full disk", "broken disk", "Ctrl-C"],
)
def test_a_failure_half_way_leaves_nothing(
    tsgb: Run,
    here: Path,
    monkeypatch: pytest.MonkeyPatch,
    failure: BaseException,
    code: int,
) -> None:
    def fail(path: Path, content: Any) -> None:
        assert list(path.parent.iterdir()), "something was written before"
        raise failure

    monkeypatch.setattr("tsgb.export.guard.write_json", fail)
    ended = tsgb("export-guard", "../store/full", "out")
    assert ended.code == code
    assert ended.err.count("\n") == 1
    assert names(here) == set()


def test_what_appears_meanwhile_is_kept(tmp_path: Path) -> None:
    out = tmp_path / "out"

    def overtaken() -> None:
        with directories.published(out):
            out.mkdir()
            (out / "mine").write_text("precious")

    with pytest.raises(UsageError, match="choose another directory"):
        overtaken()
    assert names(tmp_path) == {"out"}
    assert names(out) == {"mine"}


COMMIT = "0123456789abcdef" * 2 + "01234567"


@pytest.mark.parametrize(
    ("pretrained", "base"),
    [
        (f"acme/tiny@{COMMIT}", HubBase("acme/tiny", COMMIT)),
        ("/models/tiny", None),
        ("/models/a@b", None),
        ("gguf:/models/tiny.gguf", None),
        ("", None),
    ],
)
def test_a_base_on_the_hub_is_named_with_its_commit(pretrained: str, base: HubBase | None) -> None:
    engine = cast("Engine", SimpleNamespace(name="tiny"))
    assert hub_base(engine, ModelConfig(pretrained=pretrained)) == base

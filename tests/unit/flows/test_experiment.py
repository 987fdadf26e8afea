"""The seeds of an experiment, as far as it comes before Prefect starts."""

from __future__ import annotations

from pathlib import Path

import pytest

from flows.experiment import run_experiment
from tsgb.config import Profile, make_config
from tsgb.errors import UsageError
from tsgb.run_options import RunOptions


@pytest.mark.parametrize(
    ("begun", "seeds", "message"),
    [
        ("x", 3, "x was begun with one seed, and several would be trained in x-s0 and so on"),
        ("x-s0", None, "x was begun with several seeds, the first of them in x-s0: give --seeds"),
    ],
)
def test_a_run_is_not_begun_anew_with_another_number_of_seeds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, begun: str, seeds: int | None, message: str
) -> None:
    monkeypatch.setenv("TSGB_CACHE_DIR", str(tmp_path / "cache"))
    store = tmp_path / "store"
    (store / begun).mkdir(parents=True)
    config = make_config({"profile": "smoke"})
    (store / begun / "config.json").write_text(config.canonical())
    options = RunOptions(run="x", seeds=seeds, profile=Profile.SMOKE, store=str(store))
    with pytest.raises(UsageError, match=message):
        run_experiment(options)
    assert [path.name for path in store.iterdir()] == [begun]

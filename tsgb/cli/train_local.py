"""`tsgb train-local`: self-play in this process, into a folder."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tsgb.cli.options import (
    JsonOption,
    read_context,
    takes,
)
from tsgb.errors import UsageError
from tsgb.plugins import Trust
from tsgb.run_options import RunOptions

if TYPE_CHECKING:
    from flows.progress import Listener
    from flows.workers import Workers
    from tsgb.config import RunConfig
    from tsgb.data.training import TrainingData

STORE = "./checkpoints"
RUN_ID = "local"


@takes(
    *("profile", "env", "model", "target_model", "black_boxes", "seed", "world_seed"),
    *("store", "run", "overrides", "train_data", "train_map"),
    profile="smoke",
    store=STORE,
    run=RUN_ID,
    arms=["selfplay"],
)
def train_local(
    *,
    episodes: Annotated[
        int,
        typer.Option(
            min=1, help="Updates of self-play; each one plays or scores a batch of games."
        ),
    ] = 100,
    checkpoint_interval: Annotated[
        int, typer.Option(min=1, help="Updates between two checkpoints; all of them are kept.")
    ] = 10,
    options: RunOptions,
    as_json: JsonOption = False,
) -> None:
    """Train a guard by self-play in this process; the same command resumes.

    The supervised starts of both players, the attacker's warm-up and one to five rounds of
    self-play share the updates.
    """
    from flows.model_choice import choose_models, stored_models
    from flows.prepare import arm_configs, training_data_of, write_configs
    from flows.workers import Workers
    from tsgb.cli import display, output
    from tsgb.config import Arm, merge
    from tsgb.settings import load_settings

    store, run_id = options.store or STORE, options.run or RUN_ID
    settings = load_settings()
    workers = Workers(settings, display.store_url(store), run_id)
    options = choose_models(options, settings, stored_models(workers))
    usual = arm_configs(options.model_copy(update={"overrides": None}))[Arm.SELFPLAY]
    mine = {"checkpoint_interval": checkpoint_interval, "segments": 1}
    layers = (mine, schedule(episodes), larger(usual), options.overrides or {})
    data = training_data_of(options)
    configs = arm_configs(options.model_copy(update={"overrides": merge(*layers)}), data)
    _check_length(configs[Arm.SELFPLAY], episodes)
    _check_same_length(workers, episodes)
    write_configs(workers, configs, data)
    run = workers.open()
    done = display.newest_step(run) == episodes
    if not done:
        _train(run.run_url, episodes, Trust.of(options.env), data)
    document = display.training_document(run, episodes)
    if as_json:
        output.print_json(document)
    else:
        display.print_training(document, already=done)


def schedule(episodes: int) -> dict[str, Any]:
    """Divide the updates: two fifths for the starts, the rest for rounds of self-play.

    With fewer than five there is no self-play: a guard needs its start first.

    >>> schedule(100)["selfplay"]
    {'rounds': 3, 'attacker_steps': 6, 'guard_steps': 14}
    """
    rounds = 0 if episodes < 5 else min(5, max(1, episodes // 30))
    for_rounds = min(episodes * 3 // 5, episodes - 3)  # three starts need one update each
    per_round = max(2, for_rounds // rounds) if rounds else 0
    attacker = max(1, per_round * 3 // 10) if rounds else 0
    rest = episodes - rounds * per_round
    warmup = max(1, rest // 5) if rest > 2 else 0
    imitation = max(1, rest * 2 // 5) if rest > 1 else 0
    return {
        "attacker": {"sft_steps": imitation, "warmup_steps": warmup},
        "guard": {"sft_steps": rest - warmup - imitation},
        "selfplay": {
            "rounds": rounds,
            "attacker_steps": attacker,
            "guard_steps": per_round - attacker,
        },
    }


def larger(usual: RunConfig) -> dict[str, Any]:
    """Return overrides with larger batches, since only one arm is trained, and longer attacks."""
    return {
        "attacker": {"scenarios_per_step": 3 * usual.attacker.scenarios_per_step},
        "guard": {"batch": 3 * usual.guard.batch, "replay_batch": 3 * usual.guard.replay_batch},
        "evaluation": {
            "warmup_steps": 4 * usual.evaluation.warmup_steps,
            "attack_steps": 2 * usual.evaluation.attack_steps,
            "prompts": 2 * usual.evaluation.prompts,
        },
    }


def _check_length(config: RunConfig, episodes: int) -> None:
    if config.total_steps != episodes:
        raise UsageError(
            f"--set changes the schedule to {config.total_steps} updates, --episodes says "
            f"{episodes}: give the steps of every phase so that they add up, or none"
        )


def _check_same_length(workers: Workers, episodes: int) -> None:
    try:
        kept = workers.config().total_steps
    except FileNotFoundError:
        return
    if kept != episodes:
        raise UsageError(
            f"run {workers.run!r} in {workers.store} was started with --episodes {kept}, now it is "
            f"{episodes}: resume it with {kept}, or give a new run another --run-id or --store"
        )


@dataclass(slots=True)
class _Screen:
    """Shows each update: its phase, its round and the latest figures."""

    listener: Listener
    """Shows the bars."""
    total: int
    """Number of updates of the whole run."""
    seen: dict[str, float] = field(default_factory=dict[str, float])
    """Newest value of each figure, by name."""

    def built(self, model: str, done: int, total: int) -> None:
        self._bar("build", model, done, total, "once; kept in the cache")

    def updated(self, metrics: Mapping[str, Any]) -> None:
        self.seen |= {name: metrics[name] for name in ("asr", "fpr") if name in metrics}
        figures = "  ".join(f"{name.upper()} {value:.0%}" for name, value in self.seen.items())
        text = f"{metrics['phase']}, round {metrics['round'] + 1}  {figures}"
        self._bar("train", "self-play", metrics["step"], self.total, text)

    def _bar(self, stage: str, key: str, done: int, total: int, text: str) -> None:
        from flows.progress import Bar

        self.listener.bars(stage, [Bar(key=key, done=done, total=total, text=text)])


def _train(run_url: str, episodes: int, trust: Trust, data: TrainingData | None) -> None:
    from flows.progress import watching

    with watching() as listener:
        listener.note(f"train-local: {episodes} updates into {run_url}")
        if data is not None:
            listener.note(str(data))
        from tsgb.worker.train import train

        screen = _Screen(listener, episodes)
        train(
            read_context(trust),
            run_url,
            keep=None,
            on_update=screen.updated,
            on_build=screen.built,
        )

"""What happens in which phase of a run, in every arm."""

from __future__ import annotations

import json
from collections.abc import Sequence
from random import Random
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.fakes.miniature import (
    MiniatureEnvironment,
    ScriptedTarget,
    make_trainer,
    miniature_config,
    obedient,
    untrained_model,
    world,
)
from tsgb.config import Arm, arm_overrides
from tsgb.envs.glyph import GlyphEnvironment
from tsgb.errors import TrainingFailed
from tsgb.models.weights import load_parameters, snapshot
from tsgb.trainer.batches import SLICES, clean_prompts
from tsgb.trainer.calibration import calibration_prompts
from tsgb.trainer.loop import Metrics, Trainer
from tsgb.trainer.players import GuardPlayer
from tsgb.types import Response, Split, StreamKind

NORM = "model.norm.weight"


class ScriptedGuard(GuardPlayer):
    """Knows all labels; with its final norm at zero it blocks everything instead."""

    def score(self, prompts: Sequence[str]) -> Tensor:
        if not self.parameters[NORM].any():
            return torch.full((len(prompts),), 5.0)
        return torch.tensor([3.0 if world().label(prompt) else -3.0 for prompt in prompts])

    def learn(self, prompts: Sequence[str], gains: Sequence[float], **options: Any) -> Any:
        """As it is, but reports the scripted scores."""
        metrics, _ = super().learn(prompts, gains, **options)
        return metrics, self.score(prompts)


def scripted(overrides: dict[str, Any]) -> Trainer:
    """A trainer whose guard never learns, but is perfect from the start."""
    trainer = make_trainer(miniature_config({"guard": {"lr": 0.0, "sft_lr": 0.0}}, overrides))
    guard = trainer.guard
    trainer.guard = ScriptedGuard(guard.engine, world(), guard.config, guard.role)
    return trainer


def run(trainer: Trainer) -> list[Metrics]:
    metrics: list[Metrics] = []
    while not trainer.done:
        metrics.append(trainer.step())
    return metrics


def block_everything(trainer: Trainer) -> None:
    weights = snapshot(trainer.guard.parameters)
    load_parameters(trainer.guard.parameters, {**weights, NORM: torch.zeros_like(weights[NORM])})


def test_a_guard_that_blocks_everything_has_fpr_one_and_is_never_selected() -> None:
    trainer = scripted({"selfplay": {"rounds": 1}})
    while trainer.state.step < trainer.total_steps - 1:
        trainer.step()
    block_everything(trainer)
    metrics = trainer.step()
    assert metrics["fpr"] == 1.0
    assert metrics["distance_to_always_block"] == 0.0
    state = trainer.state
    assert state.guards == ["sft", "round-1"]
    assert state.thresholds == [-3.0, 5.0], "at its own operating point it blocks nothing"
    bare = [sum(bool(a.violated) for a in m.attacks) / len(m.attacks) for m in state.pool]
    assert [row[0] for row in state.payoff] == [0.0] * len(bare)
    assert [row[1] for row in state.payoff] == bare
    assert max(bare) > 0
    assert state.guards[state.best_guard] == "sft"


def test_the_worst_case_over_attackers_counts_not_the_best() -> None:
    """One guard stops an attacker and falls to another; the new one falls to each now and then."""
    trainer = scripted({"selfplay": {"rounds": 1, "payoff_attacks": 40}})
    while trainer.state.step < trainer.total_steps - 1:
        trainer.step()
    block_everything(trainer)
    trainer.state.payoff = [[0.0], [1.0]]
    trainer.step()
    assert all(0 < row[1] < 1 for row in trainer.state.payoff)
    assert trainer.state.guards[trainer.state.best_guard] == "round-1"


def test_of_equally_good_guards_the_newest_is_selected() -> None:
    trainer = scripted({})
    run(trainer)
    assert trainer.state.guards[trainer.state.best_guard] == "round-2"


def test_the_price_of_false_positives_rises_and_falls_within_its_bounds() -> None:
    limits = {"guard": {"dual_lr": 0.75, "dual_max": 1.25}, "calibration": {"fpr": 0.1}}
    trainer = scripted({**limits, "selfplay": {"rounds": 1, "guard_steps": 8}})
    while trainer.phase().kind != "guard":
        trainer.step()
    trainer.step()
    perfect = snapshot(trainer.guard.parameters)
    trainer.state.prices = {}
    block_everything(trainer)
    rising = [trainer.step()["mu"] for _ in range(3)]
    assert rising == pytest.approx([0.75 * 0.9, 1.25, 1.25])
    assert trainer.state.prices == pytest.approx(dict.fromkeys(SLICES, 1.25))
    load_parameters(trainer.guard.parameters, perfect)
    trainer.state.prices = {kind.value: 0.1 for kind in SLICES}
    assert [trainer.step()["mu"] for _ in range(3)] == pytest.approx([0.025, 0.0, 0.0])


def test_each_slice_of_the_benign_traffic_has_a_price_of_its_own() -> None:
    """Ordinary traffic does not pay for the prompts close to the border."""
    limits = {"guard": {"dual_lr": 0.75, "dual_max": 1.25}, "calibration": {"fpr": 0.1}}
    trainer = scripted({**limits, "selfplay": {"rounds": 1, "guard_steps": 8}})
    while trainer.phase().kind != "guard":
        trainer.step()
    trainer.step()
    trainer.state.prices = {StreamKind.TWINS.value: 1.0}
    trainer.step()
    assert trainer.state.prices == pytest.approx(
        {StreamKind.BENIGN: 0.0, StreamKind.HARD_BENIGN: 0.0, StreamKind.TWINS: 0.925}
    )


def test_the_operating_point_is_a_benign_score_within_the_budget() -> None:
    trainer = make_trainer(miniature_config())
    threshold = trainer.calibrate()
    prompts = calibration_prompts(world(), trainer.config)
    scores = trainer.guard.score([prompt.text for prompt in prompts])
    assert threshold in scores.tolist()
    assert (scores > threshold).float().mean() < trainer.config.calibration.fpr
    assert trainer.state.threshold == threshold


def test_calibration_prompts_are_benign_and_the_same_for_all_guards() -> None:
    config = miniature_config({"calibration": {"num": 40, "hard_share": 0.25, "twins_share": 0.25}})
    prompts = calibration_prompts(world(), config)
    assert prompts == calibration_prompts(world(), config)
    assert len(prompts) == 40
    assert not any(world().label(prompt.text) for prompt in prompts)
    assert prompts != calibration_prompts(world(), miniature_config({"seed": 1}))


def test_no_attacker_plays_in_the_supervised_baseline() -> None:
    trainer = make_trainer(miniature_config(arm_overrides(Arm.SFT)))
    start = snapshot(trainer.attacker.parameters)
    metrics = run(trainer)
    assert {m["phase"] for m in metrics} == {"sft_guard", "guard"}
    assert trainer.state.episode == 0
    assert trainer.state.pool == []
    assert trainer.state.guards == ["sft", "round-1", "round-2"]
    assert trainer.state.best_guard == 2
    assert all(torch.equal(t, trainer.attacker.parameters[n]) for n, t in start.items())


def test_the_frozen_attacker_does_not_learn_after_its_warm_up() -> None:
    trainer = make_trainer(miniature_config(arm_overrides(Arm.FROZEN)))
    metrics = run(trainer)
    assert {m["phase"] for m in metrics} == {"sft_attacker", "warmup", "sft_guard", "guard"}
    assert [member.name for member in trainer.state.pool] == ["warm"]
    warm, now = trainer.starts["warm"], trainer.attacker.parameters
    assert all(torch.equal(t, now[n]) for n, t in warm.items())
    assert trainer.state.buffer, "its attacks are sampled anew before each guard phase"


@pytest.mark.parametrize(
    ("reinitialise", "starts"),
    [
        pytest.param(True, ["warm", "sft", "warm"], id="in-turn"),
        pytest.param(False, ["warm", "warm", "warm"], id="always-warm"),
    ],
)
def test_where_an_attacker_starts_each_round(reinitialise: bool, starts: list[str]) -> None:
    """At learning rate zero it still stands where it started."""
    changes = {"selfplay": {"rounds": 3, "reinitialise": reinitialise}, "attacker": {"lr": 0.0}}
    trainer = make_trainer(miniature_config(changes))
    while trainer.phase().kind != "sft_guard":
        trainer.step()
    trainer.starts["warm"] = {name: t + 1 for name, t in trainer.starts["sft"].items()}
    found: list[str] = []
    while not trainer.done:
        phase, begins = trainer.phase(), trainer.state.step == trainer.phase().start
        trainer.step()
        if phase.kind == "attacker" and begins:
            here = trainer.attacker.parameters[NORM]
            found += [name for name, t in trainer.starts.items() if torch.equal(t[NORM], here)]
    assert found == starts


def test_a_guard_that_has_not_changed_is_not_calibrated_again() -> None:
    trainer = make_trainer(miniature_config())
    scored: list[int] = []
    score = trainer.guard.score

    def counting(prompts: Sequence[str]) -> Tensor:
        scored.append(len(prompts))
        return score(prompts)

    trainer.guard.score = counting  # pyright: ignore[reportAttributeAccessIssue]
    first = trainer.calibrate()
    trainer.state.threshold = 99.0
    assert trainer.calibrate() == trainer.state.threshold == first
    assert len(scored) == 1
    block_everything(trainer)
    trainer.calibrate()
    assert len(scored) == 2


def test_without_a_warm_up_attackers_start_from_their_supervised_start() -> None:
    trainer = make_trainer(miniature_config({"attacker": {"warmup_steps": 0}}))
    untouched = snapshot(trainer.attacker.parameters)
    while trainer.phase().kind == "sft_attacker":
        trainer.step()
    assert torch.equal(trainer.starts["warm"][NORM], trainer.starts["sft"][NORM])
    assert not torch.equal(trainer.starts["warm"][NORM], untouched[NORM])


@pytest.mark.parametrize(
    "overrides",
    [
        pytest.param({"attacker": {"sft_steps": 0, "warmup_steps": 0}}, id="no-start"),
        pytest.param({"attacker": {"warmup_steps": 0}}, id="no-warm-up"),
        pytest.param({"selfplay": {"attacker_steps": 0}}, id="no-attacker-phase"),
        pytest.param({"selfplay": {"guard_steps": 0}}, id="no-guard-phase"),
        pytest.param({"selfplay": {"rounds": 0}}, id="no-rounds"),
        pytest.param({"attacker": {"benign_share": 1.0}}, id="benign-only"),
        pytest.param({"attacker": {"benign_share": 0.0}}, id="harmful-only"),
        pytest.param({"selfplay": {"resample": 0.0}}, id="nothing-sampled-anew"),
        pytest.param({"selfplay": {"resample": 1.0}}, id="all-sampled-anew"),
        pytest.param({"selfplay": {"buffer": 1, "payoff_attacks": 1}}, id="one-attack"),
        pytest.param(arm_overrides(Arm.NO_POOL), id="no-pool"),
        pytest.param(arm_overrides(Arm.NO_TWINS), id="no-twins"),
        pytest.param(arm_overrides(Arm.NO_REPLAY), id="no-replay"),
        pytest.param(arm_overrides(Arm.NO_QUOTA), id="no-quota"),
        pytest.param(arm_overrides(Arm.EXACT_PG), id="exact-pg"),
    ],
)
@pytest.mark.filterwarnings("error")
def test_every_legal_schedule_runs_to_its_end(overrides: dict[str, Any]) -> None:
    plays_to_its_end(make_trainer(miniature_config(overrides)))


@pytest.mark.parametrize("arm", [Arm.SELFPLAY, Arm.FROZEN, Arm.NO_POOL, Arm.NO_TWINS], ids=str)
@pytest.mark.filterwarnings("error")
def test_an_attacker_that_never_writes_anything_readable_harms_nobody(arm: Arm) -> None:
    """Here what an untrained attacker writes is read as it stands."""
    env = GlyphEnvironment(0)
    config = miniature_config(arm_overrides(arm))
    trainer = Trainer(config, env, untrained_model(), obedient(env, 0))
    plays_to_its_end(trainer)
    assert trainer.state.pool == []
    assert trainer.state.buffer == []


def plays_to_its_end(trainer: Trainer) -> None:
    metrics = run(trainer)
    json.dumps(metrics, allow_nan=False)
    assert [m["step"] for m in metrics] == [*range(1, trainer.config.total_steps + 1)]
    trainer.load(trainer.files())


def test_the_family_of_most_attacks_is_told_where_its_replay_is_capped() -> None:
    plain = run(make_trainer(miniature_config()))
    capped = run(make_trainer(miniature_config({"selfplay": {"family_cap": 0.25}})))
    assert not any("family_share" in metrics for metrics in plain)
    told = [m["family_share"] for m in capped if m["phase"] in {"warmup", "attacker"}]
    assert told
    assert all(0 <= share <= 1 for share in told)
    assert any(0 < share < 1 for share in told)


class Mute(MiniatureEnvironment):
    """Has no label for half of all texts."""

    def label(self, prompt: str) -> bool | None:
        return None if self.silent(prompt) else super().label(prompt)

    @staticmethod
    def silent(prompt: str) -> bool:
        return len(prompt) % 2 == 0


class Watching(GuardPlayer):
    """Remembers the prompts that it learned from."""

    def learn(self, prompts: Sequence[str], gains: Sequence[float], **options: Any) -> Any:
        self.seen: set[str] = getattr(self, "seen", set()) | set(prompts)
        return super().learn(prompts, gains, **options)


@pytest.mark.parametrize("cap", [None, 0.5], ids=["uncapped", "capped"])
def test_the_guard_never_learns_from_a_harmless_text_without_a_label(cap: float | None) -> None:
    config = miniature_config({"selfplay": {"family_cap": cap}})
    refusing = ScriptedTarget(lambda _prompt: Response(text="REFUSE"))
    trainer = Trainer(config, Mute(0), untrained_model(), refusing)
    guard = trainer.guard
    trainer.guard = Watching(guard.engine, trainer.env, guard.config, guard.role)
    run(trainer)
    written = [*trainer.state.buffer, *(a for m in trainer.state.pool for a in m.attacks)]
    unlabelled = {a.text for a in written if Mute.silent(a.text) and a.violated is False}
    learned = {a.text for a in written if Mute.silent(a.text) and a.violated}
    assert unlabelled
    assert trainer.guard.seen & learned, "a violation needs no label"
    # Streams and twins of the world may hold the same short text: only attacks are left out.
    clean = {p.text for p in clean_prompts(world(), Random(0), 4_000, 0.125)}
    assert not trainer.guard.seen & unlabelled - clean


def test_attacks_are_never_made_on_scenarios_of_another_split() -> None:
    refusing = ScriptedTarget(lambda _prompt: Response(text="REFUSE"))
    trainer = Trainer(miniature_config(), world(), untrained_model(), refusing)
    run(trainer)
    train = {s.scenario_id for s in world().scenarios(Split.TRAIN)}
    attacks = [*trainer.state.buffer, *(a for m in trainer.state.pool for a in m.attacks)]
    assert attacks
    assert {a.scenario_id for a in attacks} <= train
    assert refusing.asked


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"attacker": {"sft_lr": 1e30}}, r"update 2 \(sft_attacker\): the attacker's loss is nan"),
        ({"guard": {"sft_lr": 1e30}}, r"update 6 \(sft_guard\): the guard's loss is nan"),
    ],
    ids=["attacker", "guard"],
)
@pytest.mark.filterwarnings("ignore:invalid value")
def test_a_loss_that_is_no_number_ends_the_run(overrides: dict[str, Any], message: str) -> None:
    with pytest.raises(TrainingFailed, match=message):
        run(make_trainer(miniature_config(overrides)))


class TestTargetThatIsNeverBroken:
    """Without one success the attacker has no reward, and the guard nothing to defend."""

    def trainer(self, warmup_steps: int) -> Trainer:
        env = GlyphEnvironment(0)
        refusing = ScriptedTarget(lambda _prompt: Response(text="REFUSE"), name="stubborn")
        config = miniature_config({"attacker": {"warmup_steps": warmup_steps}})
        return Trainer(config, env, untrained_model(), refusing)

    def test_after_enough_attacks_the_run_ends(self) -> None:
        with pytest.raises(TrainingFailed) as caught:
            run(self.trainer(warmup_steps=16))
        assert str(caught.value) == (
            "update 18 (warmup): none of 156 attacks of the warm-up made the target 'stubborn' "
            "violate the policy, though no guard stood before it: self-play has nothing to learn "
            "from. Name a target that can be attacked (--target-model), or give the attacker more "
            "attacker.sft_steps or attacker.warmup_steps"
        )

    def test_after_a_few_attacks_it_is_said_once(self, capsys: pytest.CaptureFixture[str]) -> None:
        plays_to_its_end(self.trainer(warmup_steps=2))
        said = capsys.readouterr().err
        assert said.count("none of 30 attacks of the warm-up made the target 'stubborn'") == 1

"""Filling the cells of an evaluation; any number of processes share the work.

It knows the layout of `reports/<eval id>/` in a run. A cell that is there is not made again, so an
interrupted evaluation goes on where it stopped and nothing is asked twice.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from random import Random
from typing import Any

import torch

from tsgb.checkpoint.layout import STATE_FILE
from tsgb.checkpoint.reader import CheckpointReader
from tsgb.checkpoint.reject import way_back
from tsgb.checkpoint.run import RunStore
from tsgb.config import Arm, RunConfig
from tsgb.envs.base import Environment
from tsgb.envs.pool import PoolAttack
from tsgb.errors import StoreError, StoreUnreachable
from tsgb.eval import calibrated
from tsgb.eval.additions import choose_targets
from tsgb.eval.calibrated import CalibratedGuard
from tsgb.eval.cells import RationedAttack, adaptive_items, scripted_items
from tsgb.eval.curves import curve_of
from tsgb.eval.discovery import ScoreWith, discovery
from tsgb.eval.guard_times import NUM_TIMED, time_guards
from tsgb.eval.judge_results import examine
from tsgb.eval.logged_target import AttackedTarget
from tsgb.eval.ration import fought, ration
from tsgb.eval.records import Curve, Discovery, GuardThreshold, Payoff
from tsgb.eval.request import (
    EvaluationCell,
    attacked_targets,
    dtype_of_cell,
    endpoint_names,
    failing_targets,
    plan,
    questions_of,
    read_request,
    scripted_weight,
    share,
)
from tsgb.eval.transcripts import TRANSCRIPTS
from tsgb.guards.model import ModelGuard
from tsgb.judges.exact import ExactJudge
from tsgb.logging import get_logger
from tsgb.models.registry import ModelRegistry
from tsgb.models.weights import load_parameters
from tsgb.protocols import Judge, Scores, Target
from tsgb.targets.build import build_target
from tsgb.trainer.best_response import FreshAttacker
from tsgb.trainer.players import GuardPlayer
from tsgb.trainer.state import check_target, loading, read_role, read_weights, stored_state
from tsgb.trainer.variance import gradient_batches, variance_ratio
from tsgb.types import Buffer, CheckpointRef, Split, StreamKind, TargetSpec

OpenRun = Callable[[str], RunStore]
Report = Callable[[int, int, str], None]
"""Called with (cells done, cells in all, what is being done)."""


class Evaluation:
    """One evaluation of one run."""

    def __init__(
        self,
        run: RunStore,
        config: RunConfig,
        env: Environment,
        registry: ModelRegistry,
        eval_id: str,
        open_run: OpenRun,
        own_targets: Mapping[str, Target] | None = None,
        load_own_guards: Callable[[], Sequence[CalibratedGuard]] = tuple,
        judge: Judge | None = None,
        *,
        judges_attacks: bool = False,
        take_usage: Callable[[], list[dict[str, Any]]] = list,
    ) -> None:
        """Read the request.

        Args:
            run: the self-play run; the report lies in it.
            config: its configuration.
            env: its world.
            registry: its models.
            eval_id: names the request.
            open_run: opens the runs of the other arms.
            own_targets: targets of `env` that the registry does not know, ready made.
            load_own_guards: returns the user's guards, at their operating points.
            judge: judges the answers that figures count; without it the judge of `env`.
            judges_attacks: whether `judge` is another one than that of `env`, which attackers
                learn from, and so judges again what they wrote in the end.
            take_usage: returns the time and money of what the user's targets answered since its
                last call.
        """
        self.run = run
        self.config = config
        self.env = env
        self.registry = registry
        self.eval_id = eval_id
        self._open_run = open_run
        self._load_own_guards = load_own_guards
        self.judge: Judge = judge or ExactJudge(env)
        self._judges_attacks = judges_attacks
        self.take_usage = take_usage
        self.directory = f"reports/{eval_id}"
        self.request = read_request(run, eval_id)
        chosen = choose_targets(env, self.request.get("targets"))
        self.specs: dict[str, TargetSpec] = {name: env.targets()[name] for name in chosen}
        self._guards: list[CalibratedGuard] | None = None
        self._targets: dict[str, Target] = dict(own_targets or {})
        self._attacked: dict[str, AttackedTarget] = {}
        self._added = frozenset(own_targets or ())

    def fill(self, part: int, parts: int, report: Report, check: Callable[[], None]) -> None:
        """Make this part's cells.

        Args:
            part: from 0.
            parts: how many share the work.
            report: progress, told again while a cell is made; a worker that is silent for long
                counts as stalled.
            check: called at each update and each piece of a score or answer; raises to stop.
        """
        everything = plan(self.config, attacked_targets(self.request, self.specs))
        # Without a guard, before the baselines, and before each trained guard.
        attacked = 3 + len(self.refs()) + len(self.request.get("own_guards") or ())
        weight = scripted_weight(self.config, len(self.specs), attacked)
        cells = share(everything, part, parts, weight, self._added)
        dtype, dtypes = self.registry.dtype, {cell: self._dtype_of(cell) for cell in everything}
        complete = len(set(dtypes.values())) == 1 and None not in dtypes.values()
        attackers: dict[int, FreshAttacker] = {}

        def tick() -> None:
            check()
            report(done, len(cells), label)

        self.registry.tick = tick
        for done, cell in enumerate(cells):
            label = cell.name
            report(done, len(cells), label)
            found = dtypes[cell]
            if found == dtype or (found is not None and complete):
                continue
            if found is not None:
                get_logger().warning(
                    f"cell {cell.name} was computed in {found}, this machine computes in {dtype}: "
                    "it is made anew, since a report does not mix them; to keep one dtype on all "
                    "machines set model.dtype in new runs"
                )
            if cell.target is None:
                content = self._scripted()
            elif cell.target in self._added and self._fails(cell.target):
                get_logger().warning(
                    f"cell {cell.name} is not made: too many fixed prompts to {cell.target} have "
                    "no outcome"
                )
                continue
            else:
                if cell.br_seed not in attackers:
                    attackers[cell.br_seed] = FreshAttacker(
                        self.env, self.registry.base(), self.config, cell.br_seed, tick
                    )
                content = self._adaptive(cell, attackers[cell.br_seed])
            content["dtype"] = dtype
            content["usage"] = self.take_usage()
            self.registry.free_black_box()
            name = f"{self.directory}/cells/{cell.name}.json"
            self.run.write_signed(name, json.dumps(content).encode())
        report(len(cells), len(cells), "done")

    # -- cells -----------------------------------------------------------------------------

    def _scripted(self) -> dict[str, Any]:
        guards = self.guards()
        targets = [self.target(name) for name in self.specs]
        items, games = scripted_items(self.env, self.config, guards, targets, self.judge)
        return {
            "items": [item.model_dump(mode="json", exclude_defaults=True) for item in items],
            "thresholds": [t.model_dump(mode="json") for t in self._thresholds(guards)],
            "payoff": [p.model_dump(mode="json") for p in self._payoffs()],
            "discovery": [d.model_dump(mode="json") for d in self._discoveries()],
            "curves": [c.model_dump(mode="json") for c in self._curves()],
            "variance": self._variance(),
            "judge": examine(self.judge),
            "guard_times": self._guard_times(guards),
            "transcripts": TRANSCRIPTS.dump_python(games, mode="json"),
            **({"models": self.registry.hashes} if self.registry.hashes else {}),
        }

    def _guard_times(self, guards: Sequence[CalibratedGuard]) -> dict[str, dict[str, Any]]:
        """Return the time that each guard takes for an ordinary benign prompt."""
        rng = Random(f"guard-times-{self.config.seed}")
        prompts = self.env.stream(StreamKind.BENIGN, Split.TEST, rng, NUM_TIMED)
        return time_guards(guards, [prompt.text for prompt in prompts])

    def _adaptive(self, cell: EvaluationCell, attacker: FreshAttacker) -> dict[str, Any]:
        name = str(cell.target)
        if name not in self._attacked:
            self._attacked[name] = AttackedTarget(self.target(name))
        items, games = adaptive_items(
            self.config,
            attacker,
            self._attacked[name],
            self.guards(),
            surrogate=self.specs[name].role == "surrogate",
            judge=self.judge if self._judges_attacks else None,
            rationed=self._rationed(name),
        )
        return {
            "items": [item.model_dump(mode="json", exclude_defaults=True) for item in items],
            "transcripts": TRANSCRIPTS.dump_python(games, mode="json"),
        }

    def _rationed(self, target: str) -> RationedAttack | None:
        """Return what an attacker may ask of an endpoint; None for any other target."""
        if target not in endpoint_names(self.request):
            return None
        guards = fought(guard.name for guard in self.guards() if guard.attacked)
        [stand_in] = (s.name for s in self.env.targets().values() if s.role == "surrogate")
        return RationedAttack(
            ration=ration(self.config, questions_of(self.request), len(guards)),
            stand_in=self.target(stand_in),
        )

    def _fails(self, target: str) -> bool:
        """Whether the fixed prompts to a target were not all asked, or too many have no outcome."""
        content = self._content(EvaluationCell())
        if content is None:
            return True
        return target in failing_targets(content, self.config.evaluation.max_error_rate)

    def _dtype_of(self, cell: EvaluationCell) -> str | None:
        """Return the dtype of a cell that is there, whole, and has few errors; else None."""
        content = self._content(cell)
        if content is None or failing_targets(content, self.config.evaluation.max_error_rate):
            return None
        return dtype_of_cell(content, self.config)

    def _content(self, cell: EvaluationCell) -> dict[str, Any] | None:
        """Return a cell; half of one is none, and one that is not signed with our key."""
        try:
            return self.run.read_signed_json(f"{self.directory}/cells/{cell.name}.json")
        except StoreUnreachable:
            raise
        except (FileNotFoundError, StoreError):
            return None

    # -- what is evaluated -------------------------------------------------------------------

    def target(self, name: str) -> Target:
        """A target by name."""
        if name not in self._targets:
            self._targets[name] = build_target(self.registry, self.env.targets()[name])
        return self._targets[name]

    def guards(self) -> list[CalibratedGuard]:
        """All guards in table order."""
        if self._guards is None:
            model = self.registry.base()
            found: list[CalibratedGuard | None] = [
                calibrated.no_guard(),
                calibrated.tfidf(self.env, self.config),
                calibrated.untrained(self.env, model, self.config),
            ]
            order = ["sft", "frozen", "selfplay"]
            refs = self.refs()
            for arm in sorted(refs, key=lambda a: order.index(a) if a in order else len(order)):
                files = self._files(refs[arm], ["guard.safetensors"])
                with _loading(refs[arm]):
                    _, about = read_weights(files, "guard.safetensors")
                check_target(about, self.registry.own_target(), f"guard {arm!r}")
                sha256 = refs[arm].sha256
                with _loading(refs[arm]):
                    found.append(
                        calibrated.trained(arm, files, self.env, model, self.config, sha256)
                    )
            found += [*self._load_own_guards(), calibrated.oracle(self.env)]
            self._guards = [guard for guard in found if guard is not None]
        return self._guards

    def refs(self) -> dict[str, CheckpointRef]:
        """Checkpoint of each trained arm."""
        return {arm: CheckpointRef(**ref) for arm, ref in self.request["guards"].items()}

    def _files(self, ref: CheckpointRef, names: Sequence[str]) -> dict[str, bytes]:
        return CheckpointReader(self._open_run(ref.run_url)).read(ref, names)

    def _thresholds(self, guards: Sequence[CalibratedGuard]) -> list[GuardThreshold]:
        thresholds: list[GuardThreshold] = []
        for guard in guards:
            if guard.name == "none":
                continue
            rule = guard.calibration
            thresholds.append(
                GuardThreshold(
                    guard=guard.name,
                    seed=self.config.seed,
                    value=guard.threshold,
                    temperature=guard.temperature,
                    alpha=rule.alpha if rule else None,
                    delta=rule.delta if rule else None,
                    num=rule.num if rule else None,
                    order=rule.order if rule else None,
                    fpr_upper=rule.fpr_upper if rule else None,
                    num_scenarios=rule.num_scenarios if rule else None,
                    correlation=rule.correlation if rule else 0.0,
                )
            )
        return thresholds

    def _payoffs(self) -> list[Payoff]:
        payoffs: list[Payoff] = []
        for arm, ref in self.refs().items():
            files = self._files(ref, [STATE_FILE])
            with _loading(ref):
                state = stored_state(files)["state"]
                if state["pool"] and state["guards"]:
                    payoffs.append(
                        Payoff(
                            seed=self.config.seed,
                            arm=arm,
                            attackers=[member["name"] for member in state["pool"]],
                            guards=state["guards"],
                            matrix=state["payoff"],
                        )
                    )
        return payoffs

    def _curves(self) -> list[Curve]:
        curves: list[Curve] = []
        for arm, ref in self.refs().items():
            try:
                text = self._open_run(ref.run_url).read_text("metrics.jsonl")
            except FileNotFoundError:
                continue
            curves.append(curve_of(text, self.config.seed, arm))
        return curves

    def _discoveries(self) -> list[Discovery]:
        """Return what the attackers of each arm found, and its guards made of it."""
        found: list[Discovery] = []
        for arm, ref in self.refs().items():
            if arm == Arm.SFT:
                continue
            files = self._files(ref, ["guard.safetensors", STATE_FILE])
            with _loading(ref):
                state = stored_state(files)["state"]
                score = self._score_of_columns(files, arm)
                thresholds = dict(zip(state["guards"], state["thresholds"], strict=True))
                config = self.config.model_copy(update={"arm": Arm(arm)})
                found.append(discovery(self.env, config, state, score, thresholds))
        return found

    def _score_of_columns(self, files: Mapping[str, Buffer], arm: str) -> ScoreWith:
        """Return what scores texts with the guard of any round of an arm."""
        engine = self.registry.base()
        columns, _ = read_role(
            files, "guard.safetensors", engine, self.config.model, f"guard {arm!r}"
        )
        role = engine.add_role(self.config.model, torch.Generator().manual_seed(0))
        guard = ModelGuard(engine, role, self.env.guard_template())

        def score(column: str, texts: Sequence[str]) -> Scores:
            load_parameters(engine.parameters(role), columns[column])
            return guard.score(texts)

        return score

    def _variance(self) -> dict[str, float] | None:
        """Claim H6, at the guard after its first round and on batches like those of its next.

        Where it stands matters: an untrained guard blocks with probability one half, where one
        sample with a baseline is as good as the expectation, and a trained one is sure of nearly
        all, so that both gradients vanish but for a few rare verdicts.
        """
        if not self.config.evaluation.variance_batches:
            return None
        refs = self.refs()
        ref = refs.get("selfplay") or next(iter(refs.values()))
        files = self._files(ref, ["guard.safetensors", STATE_FILE])
        generator = torch.Generator().manual_seed(self.config.seed + 1)
        engine = self.registry.base()
        role = engine.add_role(self.config.model, generator)
        player = GuardPlayer(engine, self.env, self.config.guard, role)
        with _loading(ref):
            columns, _ = read_weights(files, "guard.safetensors")
            load_parameters(player.parameters, columns.get("round-1", columns["current"]))
            state = stored_state(files)["state"]
            attacks = [PoolAttack(**a) for m in state["pool"] for a in m["attacks"]]
        rng = Random(f"variance-{self.config.seed}")
        batches = gradient_batches(self.env, self.config, attacks, rng)
        value, low, high = variance_ratio(player, batches, generator)
        return {"value": value, "low": low, "high": high}


def _loading(ref: CheckpointRef) -> AbstractContextManager[None]:
    """Say how a run goes on whose checkpoint loads nowhere, since no older guard stands for it."""
    return loading(ref.url, way_back(ref.url))

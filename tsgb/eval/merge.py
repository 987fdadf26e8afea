"""Merges cells of one or several runs (one a seed): results.jsonl, summary.json, report.html.

It asks no model and imports no torch: everything was measured when the cells were filled.
"""

from __future__ import annotations

import math
import subprocess
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import ValidationError
from scipy.special import stdtrit

from tsgb.checkpoint.documents import canonical_json
from tsgb.checkpoint.manifest import installed_versions, sha256_hex
from tsgb.checkpoint.run import RunStore
from tsgb.config import Arm, RunConfig, TrainingDataConfig
from tsgb.envs.base import Environment
from tsgb.errors import StoreError, UsageError
from tsgb.eval.additions import Additions
from tsgb.eval.data_results import read_cell, read_files
from tsgb.eval.human_labels import HumanLabels
from tsgb.eval.judge_records import JudgeRecord
from tsgb.eval.judge_results import LabelUse, judge_record
from tsgb.eval.records import (
    Curve,
    DataFileRecord,
    Discovery,
    Estimate,
    GuardThreshold,
    Item,
    Payoff,
    Provenance,
    ReplayShare,
    Setup,
    Summary,
    TargetRecord,
)
from tsgb.eval.report import render_report
from tsgb.eval.request import (
    attacked_targets,
    dtype_of_cell,
    endpoint_names,
    failing_targets,
    plan,
    questions_of,
    read_request,
)
from tsgb.eval.summarise import summarise
from tsgb.eval.transcripts import TRANSCRIPTS, Transcript, choose_adaptive
from tsgb.eval.usage import Role, pooled_spread, pooled_usage
from tsgb.eval.usage_records import GuardTime, UsageRecord
from tsgb.guards.choice import GuardChoice
from tsgb.logging import get_logger
from tsgb.targets.endpoint import EndpointSpec
from tsgb.types import TargetSpec

FIXED_ORDER = ("none", "tfidf", "untrained", "sft", "frozen", "selfplay")
NOT_MEASURED = (
    "attackers that adapt for longer than the best responses did",
    "guards that also read the target's answer",
    "natural-language harm of any kind",
)


@dataclass(frozen=True, slots=True)
class Part:
    """One run of the evaluation."""

    run: RunStore
    """Store of the run."""
    config: RunConfig
    """Its configuration."""


@dataclass(frozen=True, slots=True)
class _Cells:
    items: list[Item]
    """Items of all cells."""
    extras: Mapping[str, Any]
    """Content of the scripted cell beside its items."""
    games: list[Transcript]
    """Games that the report shows: scripted ones, then a few of each guard and target."""
    request: Mapping[str, Any]
    """The evaluation's request."""
    dtype: str
    """Dtype that the models were computed in."""
    data_files: list[DataFileRecord]
    """The user's files whose prompts the guards scored."""
    data_judge: JudgeRecord | None
    """Judge of the answers to their prompts; None where no target was asked about them."""
    usage: Sequence[Mapping[str, Any]]
    """Time and money of what was asked, of each cell."""


def merge(
    parts: Sequence[Part],
    env: Environment,
    eval_id: str,
    command: str,
    replays: Mapping[str, ReplayShare] | None = None,
) -> Summary:
    """Merge, write the three files into the first run, and return the summary.

    Where too many items have no outcome, the files are written too, and the summary and the report
    say that they are not valid.

    Args:
        parts: the runs, one a seed; equal configurations otherwise.
        env: their world.
        eval_id: names the evaluation.
        command: what to type to do it again.
        replays: what replays of guards came to, by `run/arm`.

    Raises:
        UsageError: a cell is missing, or the runs do not belong together.
    """
    _check(parts)
    cells = [_read(part, env, eval_id) for part in parts]
    if len({c.dtype for c in cells}) > 1:
        found = ", ".join(f"{p.run.run_id} in {c.dtype}" for p, c in zip(parts, cells, strict=True))
        get_logger().warning(f"the report pools seeds that were computed in two dtypes: {found}")
    items, labels = [item for c in cells for item in c.items], HumanLabels.of(cells[0].request)
    use: LabelUse | None = None
    if labels is not None:
        items, unused = labels.attach(items)
        use = LabelUse(labels, unused)
    summary = summarise(
        items,
        _setup(parts, cells, env, eval_id, command, use, replays or {}),
        num_draws=parts[0].config.evaluation.bootstrap,
    )
    run, directory = parts[0].run, f"reports/{eval_id}"
    lines = (item.model_dump_json(exclude_none=True) for item in items)
    run.write_text(f"{directory}/results.jsonl", "\n".join(lines) + "\n")
    games = cells[0].games
    if games:
        run.write_text(
            f"{directory}/transcripts.json", TRANSCRIPTS.dump_json(games, indent=1).decode()
        )
    run.write_text(f"{directory}/report.html", render_report(summary, games))
    # Last: its presence says that the others are complete.
    run.write_signed(f"{directory}/summary.json", summary.model_dump_json(indent=1).encode())
    return summary


def _check(parts: Sequence[Part]) -> None:
    first = parts[0].config.model_dump()
    seeds = [part.config.seed for part in parts]
    if len(set(seeds)) < len(seeds):
        raise UsageError(f"seeds {seeds} repeat: give one run a seed")
    for part in parts[1:]:
        other = part.config.model_dump() | {"seed": first["seed"]}
        if other != first:
            raise UsageError(
                f"run {part.run.run_id} has another configuration than {parts[0].run.run_id}: only "
                "runs that differ by their seed alone can share a report"
            )


def _read(part: Part, env: Environment, eval_id: str) -> _Cells:
    directory = f"reports/{eval_id}"
    request = read_request(part.run, eval_id)
    targets: Sequence[str] = request.get("targets") or list(env.targets())
    items: list[Item] = []
    extras: Mapping[str, Any] = {}
    scripted: list[Transcript] = []
    adaptive: list[Transcript] = []
    dtypes: set[str] = set()
    failing: set[str] = set()
    usage: list[Mapping[str, Any]] = []
    for cell in plan(part.config, attacked_targets(request, targets)):
        try:
            content = part.run.read_signed_json(f"{directory}/cells/{cell.name}.json")
        except FileNotFoundError as error:
            if cell.target in failing:
                continue
            raise UsageError(
                f"evaluation {eval_id} of {part.run.run_url} lacks cell {cell.name}, or it is not "
                "signed with TSGB_MANIFEST_KEY: evaluate first"
            ) from error
        try:
            items += [Item.model_validate(item) for item in content["items"]]
            games = TRANSCRIPTS.validate_python(content.get("transcripts", []))
        except (KeyError, TypeError, ValidationError) as error:
            raise StoreError(
                f"{part.run.run_url}/{directory}/cells/{cell.name}.json is no cell of this version "
                f"({type(error).__name__}): delete it, then evaluate again"
            ) from error
        dtypes.add(dtype_of_cell(content, part.config))
        usage += content.get("usage", [])
        if cell.target is None:
            extras, scripted = content, games
            failing = failing_targets(content, part.config.evaluation.max_error_rate)
        else:
            adaptive += games
    data_files: list[DataFileRecord] = []
    data_judge: JudgeRecord | None = None
    if request.get("data"):
        found = read_cell(part.run, directory)
        items += [Item.model_validate(item) for item in found["items"]]
        data_files = read_files(request, found)
        data_judge = judge_record([found.get("judge")])
        usage += found.get("usage", [])
        dtypes.add(dtype_of_cell(found, part.config))
    if len(dtypes) > 1:
        raise UsageError(
            f"cells of evaluation {eval_id} of {part.run.run_url} were computed in "
            f"{' and '.join(sorted(dtypes))}, which a report does not mix: evaluate again, on "
            "machines that compute in the same one"
        )
    games = [*scripted, *choose_adaptive(adaptive)]
    return _Cells(items, extras, games, request, dtypes.pop(), data_files, data_judge, usage)


def _setup(
    parts: Sequence[Part],
    cells: Sequence[_Cells],
    env: Environment,
    eval_id: str,
    command: str,
    labels: LabelUse | None,
    replays: Mapping[str, ReplayShare],
) -> Setup:
    config = parts[0].config
    names: Sequence[str] = cells[0].request.get("targets") or list(env.targets())
    specs, added = env.targets(), Additions.of(config, cells[0].request).target_names
    endpoints = endpoint_names(cells[0].request)
    attacks = sum(questions_of(c.request) for c in cells)
    thresholds = [GuardThreshold.model_validate(t) for c in cells for t in c.extras["thresholds"]]
    present = {t.guard for t in thresholds} | {"none"}
    arms = [arm.value for arm in Arm if arm.value not in FIXED_ORDER]
    own = [GuardChoice.parse(text).name for text in cells[0].request.get("own_guards") or ()]
    order = [*FIXED_ORDER, *arms, *own, "oracle"]
    rule, matched = config.calibration, config.evaluation.matched
    name = config.model.target or config.model.pretrained or env.tokenizer().pretrained
    model = Path(name).name if Path(name).is_absolute() else name  # no path of this machine
    now = datetime.now(UTC)
    return Setup(
        eval_id=eval_id,
        run_ids=[part.run.run_id for part in parts],
        profile=config.profile.value,
        env=config.env,
        seeds=[part.config.seed for part in parts],
        limits=env.limits.replace("{model}", model),
        threshold_rule=f"fpr={rule.fpr:g}, realised"
        if matched
        else f"fpr<={rule.fpr:g}@{1 - rule.delta:.0%}",
        dtype=" and ".join(sorted({c.dtype for c in cells})),
        max_error_rate=config.evaluation.max_error_rate,
        reserved=config.evaluation.reserved,
        guards=[name for name in order if name in present],
        targets=[
            TargetRecord(
                name=name,
                role=specs[name].role,
                overlap=specs[name].overlap,
                arch=specs[name].arch.replace("{model}", model),
                added=name in added,
                attacks=attacks if name in endpoints and attacks else None,
                **_denominator(env, name, added=name in added),
            )
            for name in specs
            if name in names
        ],
        thresholds=thresholds,
        payoff=[Payoff.model_validate(p) for c in cells for p in c.extras["payoff"]],
        curves=[Curve.model_validate(x) for c in cells for x in c.extras["curves"]],
        world_seed=config.world_seed,
        coverage=config.world.coverage,
        symbols=config.world.symbols,
        matched=matched,
        discovery=[
            Discovery.model_validate(d) for c in cells for d in c.extras.get("discovery", ())
        ],
        gradient_variance_ratio=_pooled([c.extras["variance"] for c in cells]),
        data_files=cells[0].data_files,
        data_judge=cells[0].data_judge,
        judge=judge_record([c.extras.get("judge") for c in cells], labels),
        usage=_usage(cells, config),
        guard_times=_guard_times(cells),
        provenance=Provenance(
            versions=installed_versions(),
            commit=_commit(),
            seeds=[part.config.seed for part in parts],
            command=command,
            config_sha256=sha256_hex(
                canonical_json({p.run.run_id: p.config.fingerprint for p in parts})
            ),
            checkpoints={
                f"{part.run.run_id}/{arm}": ref["sha256"]
                for part, c in zip(parts, cells, strict=True)
                for arm, ref in c.request["guards"].items()
            },
            train_data=_training_data(parts),
            replays=dict(replays),
            models={k: v for c in cells for k, v in c.extras.get("models", {}).items()},
            created_at=now,
            wall_seconds=_seconds([c.request for c in cells], now),
            not_measured=[*NOT_MEASURED, *_longer_attacks(specs, endpoints, attacks)],
        ),
    )


def _usage(cells: Sequence[_Cells], config: RunConfig) -> list[UsageRecord]:
    """Pool what the cells counted; a target without a declared price has no cost."""
    added = Additions.of(config, cells[0].request)
    judges = [] if added.judge_endpoint is None else [added.judge_endpoint]
    prices: dict[tuple[Role, str], tuple[float, float] | None] = {}
    prices |= {("target", spec.name): _prices(spec) for spec in added.endpoints}
    prices |= {("judge", spec.name): _prices(spec) for spec in judges}
    try:
        return pooled_usage([one for c in cells for one in c.usage], prices)
    except (KeyError, TypeError, ValueError) as error:
        raise _strange_counts(error) from error


def _prices(spec: EndpointSpec) -> tuple[float, float] | None:
    """Return the dollars of a million tokens in and out; None where one is not known."""
    if spec.dollars_in is None or spec.dollars_out is None:
        return None
    return spec.dollars_in, spec.dollars_out


def _guard_times(cells: Sequence[_Cells]) -> list[GuardTime]:
    """Pool the times of each guard over the seeds."""
    samples: dict[str, list[Mapping[str, Any]]] = {}
    try:
        for c in cells:
            for guard, sample in c.extras.get("guard_times", {}).items():
                samples.setdefault(guard, []).append(sample)
        pooled = {guard: pooled_spread(found) for guard, found in samples.items()}
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise _strange_counts(error) from error
    return [GuardTime(guard=guard, prompt=p) for guard, p in pooled.items() if p is not None]


def _strange_counts(error: Exception) -> StoreError:
    return StoreError(
        f"a cell tells its time and money in a way that this version does not read "
        f"({type(error).__name__}): delete the cells, then evaluate again"
    )


def _training_data(parts: Sequence[Part]) -> list[TrainingDataConfig]:
    found = [p.config.train_data for p in parts if p.config.train_data is not None]
    return list({data.sha256: data for data in found}.values())


def _denominator(env: Environment, target: str, *, added: bool) -> Mapping[str, Any]:
    """Return what must leak from a target before guards have figures on it.

    A black box of the user's must leak at all, also where the world asks for nothing.
    """
    needs = env.denominator(target)
    leaks, asr = (0, 0.0) if needs is None else (needs.leaks, needs.asr)
    return {"min_leaks": max(leaks, int(added)), "min_asr": asr}


def _longer_attacks(
    specs: Mapping[str, TargetSpec], endpoints: Collection[str], attacks: int
) -> Iterator[str]:
    """Yield what attackers of endpoints did not do, where there were any."""
    named = [name for name in specs if name in endpoints]
    surrogate = next(spec.name for spec in specs.values() if spec.role == "surrogate")
    if attacks and named:
        yield (
            f"fresh attackers that send more than {attacks:,} attacks to each of "
            f"{', '.join(named)}: while they learned without sending any, {surrogate} answered"
        )


def _pooled(measured: Sequence[Mapping[str, float] | None]) -> Estimate | None:
    """Geometric mean over seeds with a t interval of the logarithms; one seed has its own."""
    found = [v for v in measured if v is not None]
    if not found:
        return None
    if len(found) == 1:
        return Estimate(value=found[0]["value"], low=found[0]["low"], high=found[0]["high"])
    logs = np.log([max(v["value"], 1e-12) for v in found])
    centre, error = float(logs.mean()), float(logs.std(ddof=1)) / math.sqrt(len(logs))
    reach = float(stdtrit(len(logs) - 1, 0.975)) * error
    return Estimate(
        value=math.exp(centre), low=math.exp(centre - reach), high=math.exp(centre + reach)
    )


def _seconds(requests: Sequence[Mapping[str, Any]], now: datetime) -> float | None:
    """Seconds from the first request to `now`, pauses of a resumed evaluation included.

    None if a request does not say when it was written, as those of older versions.
    """
    asked = [request.get("asked_at") for request in requests]
    times = [datetime.fromisoformat(text) for text in asked if text is not None]
    return round((now - min(times)).total_seconds(), 1) if len(times) == len(asked) else None


def _commit() -> str | None:
    """The commit of a checkout, with `+` if files differ from it; None when installed."""
    root = Path(__file__).parents[2]
    if not (root / ".git").exists():
        return None

    def git(*arguments: str) -> str:
        done = subprocess.run(  # noqa: S603 - fixed arguments, no shell
            ["git", "-C", str(root), *arguments],  # noqa: S607
            capture_output=True,
            text=True,
            timeout=10,
            check=True,
        )
        return done.stdout.strip()

    try:
        dirty = "+" if git("status", "--porcelain", "--untracked-files=no") else ""
        return git("rev-parse", "HEAD") + dirty
    except (OSError, subprocess.SubprocessError):
        return None

"""Export of a role: a checkpoint's guard with its operating points, or, on request, its attacker.

It knows checkpoints, calibration and formats; how weights lie on disk is `directory.py`'s business.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Collection, Mapping
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from tsgb.checkpoint.manifest import installed_versions, sha256_hex
from tsgb.checkpoint.run import RunStore
from tsgb.config import Arm, RunConfig
from tsgb.envs.base import Environment
from tsgb.errors import CheckpointError, UsageError
from tsgb.eval.calibrated import CalibratedGuard, calibrate
from tsgb.export.card import CARD, attacker_card, guard_card
from tsgb.export.directory import (
    BASE,
    hub_base,
    is_small,
    is_smollm2,
    published,
    write_json,
    write_role,
)
from tsgb.export.record import (
    DTYPES,
    RUN_PRESET,
    SELF_TEST_TOLERANCE,
    Base,
    Calibration,
    Checkpoint,
    Dtype,
    DtypeCalibration,
    GuardFile,
    OperatingPoint,
    RunDtype,
    SelfTest,
    Template,
    Verdict,
    WordList,
)
from tsgb.export.reports import figures_of
from tsgb.guards.model import ModelGuard
from tsgb.models import smollm2
from tsgb.models.device import memory_of, pick_device, pick_dtype, release_memory
from tsgb.models.engine import Engine
from tsgb.models.files import WEIGHTS, sha256_of
from tsgb.models.weights import load_parameters
from tsgb.protocols import Scores
from tsgb.trainer.calibration import calibration_prompts
from tsgb.trainer.state import read_role
from tsgb.trainer.threshold import PRESETS, Threshold, min_calibration_size, preset_thresholds
from tsgb.types import CheckpointRef, GuardTemplate

GUARD_FILE = "guard.json"
SCRIPT = Path(__file__).with_name("score.py")
GUARD_WEIGHTS = "guard.safetensors"
ATTACKER_WEIGHTS = "attacker.safetensors"
SELF_TEST_PROMPTS = 4
"""Calibration prompts that an export holds with their scores."""
OnCalibration = Callable[[Dtype, int, int], None]
"""Callback with a dtype, and with prompts scored and prompts in all of one pass over them."""


class Bases:
    """One base model in one dtype at a time: loading it in another one frees the first."""

    def __init__(self, make: Callable[[Dtype], Engine]) -> None:
        """Load nothing yet.

        Args:
            make: Loads the base in a dtype.
        """
        self._make = make
        self._dtype: Dtype | None = None
        self.loaded: Engine | None = None
        """The engine that is in memory; None before the first one."""

    def load(self, dtype: Dtype) -> Engine:
        """Return the engine in a dtype; callers keep no other one."""
        if self.loaded is None or self._dtype != dtype:
            self._dtype, self.loaded = dtype, None
            release_memory()
            self.loaded = self._make(dtype)
        return self.loaded


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """A checkpoint, and what is needed to understand it."""

    ref: CheckpointRef
    """Reference of the checkpoint."""
    files: Mapping[str, bytes]
    """`guard.safetensors` and its parts, or `attacker.safetensors` to export that one."""
    run: RunStore
    """The arm's run, which holds the checkpoint."""
    main_run: RunStore
    """The self-play run, in which the reports of all arms lie; often the same."""
    config: RunConfig
    """Configuration of that run."""
    env: Environment
    """The run's world."""
    bases: Bases
    """The base that the environment and the profile name."""

    @property
    def engine(self) -> Engine:
        """The base in the dtype in which it was loaded last, at first in that of the export."""
        return self.bases.loaded or self.bases.load(self.dtype)

    @property
    def run_dtype(self) -> RunDtype:
        """Dtype that the run computed in; `auto` where each of its machines chose one."""
        own = self.config.model.adapter == "full" or self.built_in
        return "float32" if own else self.config.model.dtype

    @property
    def dtype(self) -> Dtype:
        """Dtype of the run; where its machines chose one, the one that this machine takes."""
        model, run = self.config.model, self.run_dtype
        if run != "auto":
            return run
        found = pick_dtype(model, pick_device(model.device))
        return "bfloat16" if found is torch.bfloat16 else "float32"

    @property
    def built_in(self) -> bool:
        """Whether TSGB trained the base itself: it is found nowhere else then."""
        return not self.env.tokenizer().pretrained


def export_guard(
    source: Source,
    directory: Path,
    *,
    with_base: bool = False,
    dtypes: Collection[Dtype] = (),
    on_calibration: OnCalibration = lambda _dtype, _done, _total: None,
) -> GuardFile:
    """Write the selected guard of a checkpoint, calibrated, to a new directory.

    Args:
        source: what is exported.
        directory: must not exist, or be empty.
        with_base: put the base beside an adapter even if it is large.
        dtypes: dtypes to calibrate beside the run's own; when left out, all that this machine
            computes in without great cost.
        on_calibration: called while prompts are scored.

    Raises:
        CheckpointError: there is no guard in it, or it belongs to another base.
        UsageError: the directory cannot be made, the calibration is too small for its budget, or a
            dtype cannot be had.
    """
    config = source.config
    what = f"checkpoint {source.ref.name}"
    columns, column = read_role(source.files, GUARD_WEIGHTS, source.engine, config.model, what)

    def measure(dtype: Dtype) -> _Measured:
        return _measured(source, columns[column], dtype, on_calibration)

    with published(directory) as scratch:
        own = measure(source.dtype)
        base = _write(source, columns[column], scratch, with_base=with_base)
        others, uncalibrated = _in_other_dtypes(source, dtypes, measure)
        measured: dict[Dtype, DtypeCalibration] = {source.dtype: own.calibration, **others}
        record = _record(source, own.rule, column, base, measured, uncalibrated)
        write_json(scratch / GUARD_FILE, record.model_dump(mode="json"))
        shutil.copyfile(SCRIPT, scratch / SCRIPT.name)
        figures = figures_of([source.run, source.main_run], source.ref, config.seed)
        text = guard_card(record, config, source.env.limits, figures, license_of(source))
        (scratch / CARD).write_text(text, encoding="utf-8")
    return record


def export_attacker(source: Source, directory: Path, *, with_base: bool = False) -> None:
    """Write the attacker's weights and a card that says what they are.

    Raises:
        CheckpointError: the run trains none, or it belongs to another base.
        UsageError: the directory cannot be made.
    """
    config = source.config
    if config.arm is Arm.SFT:
        raise CheckpointError(f"{source.ref.name} is of the arm 'sft', which trains no attacker")
    what = f"checkpoint {source.ref.name}"
    columns, _ = read_role(source.files, ATTACKER_WEIGHTS, source.engine, config.model, what)
    with published(directory) as scratch:
        base = _write(source, columns["current"], scratch, with_base=with_base)
        about = _checkpoint(source, "current")
        text = attacker_card(about, base, config, source.env.limits, license_of(source))
        (scratch / CARD).write_text(text, encoding="utf-8")


def license_of(source: Source) -> str | None:
    """Return the licence of the weights; None where the user's own base decides."""
    if is_smollm2(source.engine):
        return smollm2.LICENSE
    return "mit" if source.built_in else None


class _Measured(NamedTuple):
    calibration: DtypeCalibration
    """Operating points in a dtype, and scores of the self-test."""
    rule: Threshold
    """The run's own operating point among them."""


def _in_other_dtypes(
    source: Source, wanted: Collection[Dtype], measure: Callable[[Dtype], _Measured]
) -> tuple[dict[Dtype, DtypeCalibration], dict[Dtype, str]]:
    """Calibrate the guard anew in each dtype but the export's own; say why one is left out."""
    measured: dict[Dtype, DtypeCalibration] = {}
    uncalibrated: dict[Dtype, str] = {}
    for dtype in DTYPES:
        if dtype == source.dtype:
            continue
        if reason := _obstacle(source, dtype, wanted):
            if dtype in wanted:
                raise UsageError(f"the guard cannot be calibrated in {dtype}: {reason}")
            uncalibrated[dtype] = reason
            continue
        try:
            measured[dtype] = measure(dtype).calibration
        except UsageError as error:  # such as too little memory for it
            if dtype in wanted:
                raise UsageError(f"the guard cannot be calibrated in {dtype}: {error}") from error
            # The error may name paths of this machine, which an export never does.
            uncalibrated[dtype] = f"the exporting machine could not: --dtype {dtype} says why"
    return measured, uncalibrated


def _obstacle(source: Source, dtype: Dtype, wanted: Collection[Dtype]) -> str:
    """Return why a dtype is not calibrated here; empty where it is."""
    if source.built_in:
        return f"models of the world {source.env.name!r} are computed in {source.dtype} only"
    if source.config.model.adapter == "full":
        return "whole weights were trained in float32"
    if wanted:
        return "" if dtype in wanted else "it was not asked for"
    device = memory_of(pick_device(source.config.model.device))
    if dtype == "bfloat16" and not is_small(source.engine) and not device.has_bfloat16_units:
        return (
            "the exporting machine has no units for it and would take long: export with "
            "--dtype bfloat16, or on another machine"
        )
    return ""


def _measured(
    source: Source, weights: Mapping[str, Tensor], dtype: Dtype, on_calibration: OnCalibration
) -> _Measured:
    """Calibrate the guard in a dtype, with a few scores to compare with; keeps no engine."""
    engine, config = source.bases.load(dtype), source.config
    role = engine.add_role(config.model, torch.Generator().manual_seed(0))
    load_parameters(engine.parameters(role), weights)
    guard = calibrate(
        config.arm.value,
        ModelGuard(engine, role, source.env.guard_template()),
        source.env,
        config,
        source.ref.sha256,
        partial(on_calibration, dtype),
    )
    rule, benign = _calibrated(guard)
    drawn = calibration_prompts(source.env, config)
    scenarios = [prompt.scenario_id for prompt in drawn]
    prompts = [prompt.text for prompt in drawn[:SELF_TEST_PROMPTS]]
    calibration = DtypeCalibration(
        thresholds={
            RUN_PRESET: _point(rule),
            **{
                name: _point(threshold)
                for name, threshold in preset_thresholds(benign, rule.delta, scenarios).items()
            },
        },
        temperature=guard.temperature,
        self_test=[
            SelfTest(prompt=prompt, score=float(score), tolerance=SELF_TEST_TOLERANCE[dtype])
            for prompt, score in zip(prompts, guard.score(prompts), strict=True)
        ],
        deciles=[float(bound) for bound in np.quantile(benign, np.arange(1, 10) / 10)],
    )
    return _Measured(calibration, rule)


def _calibrated(guard: CalibratedGuard) -> tuple[Threshold, Scores]:
    if guard.calibration is None or guard.benign is None:
        raise UsageError(f"guard {guard.name!r} was never calibrated")
    return guard.calibration, guard.benign


def _record(
    source: Source,
    rule: Threshold,
    column: str,
    base: Base,
    measured: dict[Dtype, DtypeCalibration],
    uncalibrated: dict[Dtype, str],
) -> GuardFile:
    config = source.config
    template = source.env.guard_template()
    verdict = source.engine.tokenizer.verdict(template)
    return GuardFile(
        adapter=config.model.adapter,
        template=_template(source.engine, template),
        unsafe=Verdict(token=verdict.unsafe, id=verdict.unsafe_id),
        safe=Verdict(token=verdict.safe, id=verdict.safe_id),
        omitted={
            name: f"a false-positive budget of {alpha:.3g} at confidence {1 - rule.delta:.3g} "
            f"needs at least {least} benign calibration scores, this run has {rule.num} "
            "(calibration.num)"
            for name, alpha in PRESETS.items()
            if rule.num < (least := min_calibration_size(alpha, rule.delta))
        },
        dtype=source.dtype,
        run_dtype=source.run_dtype,
        dtypes=measured,
        uncalibrated=uncalibrated,
        calibration=_calibration(source, rule),
        base=base,
        checkpoint=_checkpoint(source, column),
        env=source.env.name,
        world_seed=config.world_seed,
        seed=config.seed,
        profile=config.profile.value,
        arm=config.arm.value,
        config_sha256=config.fingerprint,
        train_data=config.train_data,
        versions=installed_versions(),
    )


def _point(threshold: Threshold) -> OperatingPoint:
    fields: dict[str, Any] = asdict(threshold)
    return OperatingPoint(**{n: fields[n] for n in OperatingPoint.model_fields if n in fields})


def _template(engine: Engine, template: GuardTemplate) -> Template:
    tokenizer = engine.tokenizer
    slot = tokenizer.guard_slot(template)
    reserved = tokenizer.reserved_ids()
    real = tokenizer.transformers()
    between = " " if reserved else ""
    around = (
        f"{real.decode(slot.before)}{slot.prefix}",
        f"{slot.suffix}{real.decode(slot.after)}",
    )
    return Template(
        input=between.join((around[0], "{prompt}", around[1])),
        before_ids=slot.before,
        prefix=slot.prefix,
        suffix=slot.suffix,
        after_ids=slot.after,
        trim_start=slot.trim_start,
        trim_end=slot.trim_end,
        words=WordList(reserved_ids=reserved, unknown_id=tokenizer.pad_id) if reserved else None,
    )


def _calibration(source: Source, rule: Threshold) -> Calibration:
    config = source.config.calibration
    hard, twins = round(rule.num * config.hard_share), round(rule.num * config.twins_share)
    prompts = [prompt.text for prompt in calibration_prompts(source.env, source.config)]
    return Calibration(
        alpha=rule.alpha,
        delta=rule.delta,
        n=rule.num,
        order=rule.order,
        fpr_upper=rule.fpr_upper,
        stream=f"benign prompts of the world {source.env.name!r}, calibration split: "
        f"{rule.num - hard - twins} ordinary, {hard} hard-benign, {twins} twins of attacks",
        prompts_sha256=sha256_hex(json.dumps(prompts, ensure_ascii=False).encode()),
    )


def _checkpoint(source: Source, column: str) -> Checkpoint:
    return Checkpoint(
        run_id=source.run.run_id,
        name=source.ref.name,
        step=source.ref.step,
        total_steps=source.config.total_steps,
        sha256=source.ref.sha256,
        column=column,
    )


def _write(
    source: Source, weights: Mapping[str, Tensor], scratch: Path, *, with_base: bool
) -> Base:
    """Write the weights; returns what the record says of their base."""
    config = source.config
    with_base = with_base or source.built_in
    if source.dtype != "float32" and (with_base or is_small(source.engine)):
        source.bases.load("float32")  # the base as it is, not rounded to the run's dtype
    engine = source.engine
    written = write_role(scratch, engine, weights, config.model, with_base=with_base)
    on_hub = hub_base(engine, config.model)
    where = engine.name if on_hub is None else on_hub.repository
    if source.built_in:
        where = (
            f"trained by TSGB in the world {source.env.name!r}, world seed {config.world_seed}, "
            f"profile {config.profile.value!r}"
        )
    file_sha256 = None
    if config.model.adapter == "lora":
        file_sha256 = engine.weights_sha256 or None
        file = scratch / BASE / WEIGHTS
        if written:
            file_sha256 = sha256_of(file) if file.is_file() else None
    return Base(
        name=engine.name,
        sha256=engine.sha256,
        source=where,
        revision=None if on_hub is None else on_hub.revision,
        directory=BASE if written else None,
        file_sha256=file_sha256,
    )

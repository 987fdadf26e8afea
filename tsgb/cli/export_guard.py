"""`tsgb export-guard`: a checkpoint's guard as a directory for plain transformers or peft."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tsgb.cli.options import JsonOption, OwnEnvOption, TrustOption, read_context
from tsgb.errors import Interrupted, UsageError
from tsgb.plugins import Trust

if TYPE_CHECKING:
    from tsgb.export.guard import Source
    from tsgb.export.record import Dtype, GuardFile
    from tsgb.models.registry import ModelRegistry


def export_guard(
    checkpoint: Annotated[
        str,
        typer.Argument(
            metavar="CHECKPOINT",
            help="A checkpoint, a run or a store; /latest at the end is the newest one below.",
        ),
    ],
    directory: Annotated[
        Path, typer.Argument(metavar="DIR", help="Directory to write; it must be new or empty.")
    ],
    with_base: Annotated[
        bool, typer.Option("--with-base", help="Also write a large base beside its adapter.")
    ] = False,
    attacker: Annotated[
        bool, typer.Option("--attacker", help="Export the attacker instead of the guard.")
    ] = False,
    dtypes: Annotated[
        list[str] | None,
        typer.Option(
            "--dtype",
            metavar="NAME",
            help="float32 or bfloat16: calibrate in it too, however long it takes here; without "
            "it in both where this machine computes both well.",
        ),
    ] = None,
    understood: Annotated[
        bool,
        typer.Option("--i-understand", help="Confirm --attacker: what it exports writes attacks."),
    ] = False,
    env: OwnEnvOption = None,
    trust_config: TrustOption = False,
    as_json: JsonOption = False,
) -> None:
    """Export the guard alone, calibrated: weights, thresholds, model card and an example script.

    The directory is loaded by transformers or peft without TSGB, and appears whole or not at all.
    """
    if attacker != understood:
        raise UsageError(
            "an attacker is exported only with both --attacker and --i-understand; without either "
            "it is the guard"
        )
    from tsgb.cli import output
    from tsgb.export import guard as exports
    from tsgb.export.directory import check_free
    from tsgb.export.record import DTYPES

    wanted: list[Dtype] = [dtype for dtype in DTYPES if dtype in (dtypes or ())]
    for dtype in dtypes or ():
        if dtype not in DTYPES:
            raise UsageError(f"--dtype {dtype!r}: choose of {', '.join(DTYPES)}")
    check_free(directory)
    name = exports.ATTACKER_WEIGHTS if attacker else exports.GUARD_WEIGHTS
    source = _source(checkpoint, name, Trust.of(env, trust_config=trust_config))
    document = {
        "directory": str(directory.absolute()),
        "exported": "attacker" if attacker else "guard",
        "source": source.ref.url,
    }
    if attacker:
        exports.export_attacker(source, directory, with_base=with_base)
        lines = [f"attacker of {source.ref.name} in {directory}: read its README.md"]
    else:
        record = _export(source, directory, with_base=with_base, dtypes=wanted)
        document |= record.model_dump(mode="json")
        lines = _summary_lines(record, directory)
    if as_json:
        output.print_json(document)
        return
    for line in lines:
        typer.echo(line)


def _export(
    source: Source, directory: Path, *, with_base: bool, dtypes: Sequence[Dtype]
) -> GuardFile:
    """Export the guard, and show how far its calibration is."""
    from flows.interrupts import check_interrupt, interruptible
    from flows.progress import Bar, watching
    from tsgb.export.guard import export_guard as export

    with interruptible(), watching() as listener:

        def calibrated(dtype: str, done: int, total: int) -> None:
            check_interrupt()  # torch may lose the exception of a signal
            bar = Bar(key=dtype, done=done, total=total, text="prompts scored")
            listener.bars("calibrate", [bar])

        try:
            return export(
                source, directory, with_base=with_base, dtypes=dtypes, on_calibration=calibrated
            )
        except KeyboardInterrupt:
            raise Interrupted(
                "interrupted: nothing was exported, the same command starts anew"
            ) from None


def _source(checkpoint: str, name: str, trust: Trust) -> Source:
    from flows.progress import Bar, watching
    from tsgb.checkpoint.resolve import load
    from tsgb.export.guard import Bases, Source
    from tsgb.worker.build import make_registry, setup_torch
    from tsgb.worker.context import read_config

    context = read_context(trust)
    with watching() as listener:

        def built(model: str, done: int, total: int) -> None:
            bar = Bar(key=model, done=done, total=total, text="once; kept in the cache")
            listener.bars("build", [bar])

        ref, files = load(
            checkpoint,
            context.store.webdav_user,
            context.store.webdav_pass,
            names=[name],
            on_skip=listener.note,
        )
        run = context.open(ref.run_url)
        config = read_config(run)
        main = run.run_url.removesuffix(f".{config.arm.value}")
        setup_torch()
        # The target and black boxes take no memory here: an export loads the base alone.
        alone = {"target": "", "target_quantization": "none", "black_boxes": ()}

        def registry_in(**changes: Any) -> ModelRegistry:
            model = config.model.model_copy(update=alone | changes)
            return make_registry(config.model_copy(update={"model": model}), context, built)

        source = Source(
            ref=ref,
            files=files,
            run=run,
            main_run=context.open(main),
            config=config,
            env=registry_in().env,
            bases=Bases(lambda dtype: registry_in(dtype=dtype).base()),
        )
        source.bases.load(source.dtype)  # which may have to be downloaded or built
        return source


def _summary_lines(record: GuardFile, directory: Path) -> list[str]:
    """Return the summary of an export, as lines for people."""
    about = record.checkpoint
    progress = f"update {about.step} of {about.total_steps}"
    lines = [f"guard of {about.name} ({record.arm}, {about.column}, {progress}) in {directory}"]
    for dtype, measured in record.dtypes.items():
        for name, point in measured.thresholds.items():
            lines.append(
                f"  {name:<11}{dtype:<9}unsafe iff score > {point.value:.6g}: FPR budget "
                f"{point.alpha:.2%}, bound {point.fpr_upper:.2%} on {record.calibration.n} benign "
                "prompts"
            )
    lines += [f"  {dtype:<11}not calibrated: {why}" for dtype, why in record.uncalibrated.items()]
    lines += [f"  {name:<11}left out: {reason}" for name, reason in record.omitted.items()]
    if record.adapter == "lora" and record.base.directory is None:
        lines.append(
            f"  its base, {record.base.source}, is not in it: see README.md, or --with-base"
        )
    lines.append(f"next: python {directory / 'score.py'} PROMPT")
    return lines

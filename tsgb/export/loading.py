"""An exported guard as a callable object, by the engines: its template is read once.

Whole weights and closed word lists belong to tiny models: they go through the export's own script.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from pydantic import ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file  # pyright: ignore[reportUnknownVariableType]

from tsgb.checkpoint.documents import parse_json_object
from tsgb.config import ModelConfig
from tsgb.errors import ConfigError, UsageError
from tsgb.export.directory import ADAPTER, BASE
from tsgb.export.record import Dtype, GuardFile, Template
from tsgb.models.device import pick_device
from tsgb.models.files import CONFIG, WEIGHTS, sha256_of
from tsgb.models.registry import make_engine
from tsgb.models.tokenizer import Slot
from tsgb.models.weights import load_parameters

FetchBase = Callable[[str], Path]
"""Gives the directory of a model by its name, downloaded now if it is not here."""
BATCH_SIZE = 16
"""Prompts that are scored at once unless the caller says otherwise."""
LABELS = ("unsafe", "safe")
"""The two labels of a guard."""


class Assessment(NamedTuple):
    """What a guard says of a prompt."""

    score: float
    """logit(unsafe) - logit(safe)."""
    probability: float
    """Calibrated probability that the prompt is unsafe, in [0, 1]."""
    verdict: str
    """`unsafe` iff the score is above the threshold, else `safe`."""


class TokenCount(NamedTuple):
    """Size of a prompt as a guard reads it."""

    total: int
    """Tokens of the whole input, template included."""
    unknown: int
    """Tokens that stand for words of the prompt that the tokenizer does not know."""


@dataclass(frozen=True, slots=True)
class Reader:
    """Everything that is computed of prompts by the model of a guard and its tokenizer."""

    score: Callable[[Sequence[str]], list[float]]
    """Gives one score a prompt."""
    count: Callable[[Sequence[str]], list[TokenCount]]
    """Gives the sizes of prompts."""
    window: int | None
    """Tokens that the model reads at once; None if its configuration does not say."""


class LoadedGuard:
    """A guard that is called as a text-classification pipeline of transformers is.

    Example: `load_guard("guard")("a prompt") == [{"label": "safe", "score": 0.98}]`
    """

    def __init__(
        self,
        about: GuardFile,
        reader: Reader,
        preset: str | None,
        dtype: Dtype,
    ) -> None:
        """Wrap what scores prompts.

        Args:
            about: the export's `guard.json`.
            reader: scores prompts, and counts their tokens.
            preset: name of the operating point; the export's default when left out.
            dtype: dtype that scores are computed in, one of the export's.

        Raises:
            UsageError: The export has no such operating point.
        """
        name, measured = preset or about.default, about.dtypes[dtype]
        if name not in measured.thresholds:
            raise UsageError(
                f"this guard has no operating point {name!r}: choose of "
                f"{', '.join(measured.thresholds)}"
            )
        self.about = about
        self.dtype: Dtype = dtype
        self.threshold = measured.thresholds[name].value
        self.window = reader.window
        """Tokens of the longest input, template included; None if the model does not say."""
        self._temperature = measured.temperature
        self._reader = reader

    def assess(self, prompts: Sequence[str], *, batch_size: int = BATCH_SIZE) -> list[Assessment]:
        """Return score, probability and verdict of each prompt.

        Raises:
            UsageError: A prompt is longer than the model's context; nothing is ever cut.
        """
        scores: list[float] = []
        for start in range(0, len(prompts), batch_size):
            scores += self._reader.score(prompts[start : start + batch_size])
        return [self._assessment(score) for score in scores]

    def count(self, prompts: Sequence[str]) -> list[TokenCount]:
        """Return how many tokens each prompt takes, and how many of them are unknown words."""
        return self._reader.count(prompts)

    def __call__(
        self, inputs: str | Sequence[str], *, batch_size: int = BATCH_SIZE, **options: Any
    ) -> list[Any]:
        """Return labels with their probabilities, in the shapes of transformers.

        The label is the verdict at the guard's threshold, so its probability may be below one half.

        Args:
            inputs: one prompt, or several.
            batch_size: prompts that are scored at once.
            options: `top_k`, as in transformers: 1 gives the verdict, None both labels.

        Raises:
            UsageError: Another option is given, or a prompt is longer than the model's context.
        """
        unknown = sorted(options.keys() - {"top_k"})
        if unknown:
            raise UsageError(f"a guard takes top_k and batch_size, not {unknown[0]!r}")
        top_k: int | None = options.get("top_k", 1)
        single = isinstance(inputs, str)
        found = [
            self._labels(assessment, top_k)
            for assessment in self.assess(
                [inputs] if isinstance(inputs, str) else inputs, batch_size=batch_size
            )
        ]
        if "top_k" in options:
            return found[0] if single else found
        return [labels[0] for labels in found]

    def _assessment(self, score: float) -> Assessment:
        logit = max(-700.0, min(700.0, score / self._temperature))
        verdict = LABELS[0] if score > self.threshold else LABELS[1]
        return Assessment(score, 1 / (1 + math.exp(-logit)), verdict)

    def _labels(self, found: Assessment, top_k: int | None) -> list[dict[str, Any]]:
        unsafe = {"label": LABELS[0], "score": found.probability}
        safe = {"label": LABELS[1], "score": 1 - found.probability}
        both = [unsafe, safe] if found.verdict == LABELS[0] else [safe, unsafe]
        return both if top_k is None else both[:top_k]


def read_guard_file(directory: Path) -> GuardFile:
    """Read the `guard.json` of an export.

    Raises:
        UsageError: There is none, or not one that this version reads.
    """
    path = directory / "guard.json"
    try:
        return GuardFile.model_validate_json(path.read_bytes())
    except OSError as error:
        raise UsageError(
            f"{path}: {error.strerror}: name a directory that `tsgb export-guard` wrote"
        ) from error
    except ValidationError as error:
        first = error.errors()[0]
        raise UsageError(
            f"{path}: {'.'.join(map(str, first['loc']))}: {first['msg']}: export the guard again "
            "with this version"
        ) from error


def load_guard(
    directory: str | Path,
    *,
    base: str | Path | None = None,
    preset: str | None = None,
    device: str = "auto",
    dtype: str | None = None,
    fetch_base: FetchBase | None = None,
) -> LoadedGuard:
    """Load an exported guard, and compare the scores of its self-test.

    Args:
        directory: what `tsgb export-guard` wrote.
        base: directory or name of the base model, if the export does not hold the one it needs.
        preset: name of the operating point; the export's default when left out.
        device: `auto`, `cpu`, `cuda`, `cuda:N` or `mps`; whole weights take the first two.
        dtype: `float32` or `bfloat16`, if the export has thresholds in it; the dtype of its run
            when left out.
        fetch_base: gives the directory of a model by its name; without it a base that is no
            directory here is refused.

    Raises:
        UsageError: The directory holds no guard, or no thresholds in that dtype; there is no such
            device; its base is missing or another one; or a prompt of the self-test gets another
            score.
        ConfigError: The base cannot be loaded.
    """
    directory = Path(directory)
    about = read_guard_file(directory)
    _check_device(device)
    chosen = _dtype(directory, about, dtype)
    place = _base_of(directory, about, base, fetch_base) if about.adapter == "lora" else None
    if place is None or about.template.words is not None:
        if device not in {"auto", "cpu"}:
            raise UsageError(
                f"device {device!r}: this guard is a tiny model of its own, which is computed on "
                "the CPU: choose auto or cpu"
            )
        reader = _by_script(directory, about, place, chosen)
    else:
        reader = _by_engine(directory, about, place, device, chosen)
    guard = LoadedGuard(about, reader, preset, chosen)
    tests = about.dtypes[chosen].self_test
    found = reader.score([test.prompt for test in tests]) if tests else []
    for test, value in zip(tests, found, strict=True):
        if not abs(value - test.score) <= test.tolerance:
            raise UsageError(
                f"{directory}: a prompt of its self-test scores {value:.6g} in {chosen} instead of "
                f"{test.score:.6g} within {test.tolerance:g}: weights, tokenizer or base are not "
                "those that were exported, export the guard again"
            )
    return guard


def _check_device(name: str) -> None:
    """Refuse a device that does not exist, or that this machine lacks."""
    try:
        ModelConfig(device=name)
    except ValidationError:
        raise UsageError(
            f"device {name!r} is not known: choose of auto, cpu, cuda, cuda:N and mps"
        ) from None
    pick_device(name)


def _dtype(directory: Path, about: GuardFile, wanted: str | None) -> Dtype:
    """Return the dtype to compute in: a threshold of another dtype would be no threshold."""
    name = wanted or about.dtype
    for dtype in about.dtypes:
        if dtype == name:
            return dtype
    reasons = [reason for dtype, reason in about.uncalibrated.items() if dtype == name]
    why = f" ({reasons[0]})" if reasons else ""
    raise UsageError(
        f"{directory} has no thresholds in {name!r}{why}: choose of {', '.join(about.dtypes)}, or "
        "export the guard again"
    )


def _by_script(directory: Path, about: GuardFile, base: Path | None, dtype: Dtype) -> Reader:
    from tsgb.export.score import ExportedGuard

    try:
        guard = ExportedGuard(directory, base, dtype)
        own = parse_json_object(((base or directory) / CONFIG).read_text("utf-8"))
    except SystemExit as error:
        raise UsageError(str(error)) from error
    except (OSError, ValueError, SafetensorError) as error:
        raise UsageError(f"{directory}: {' '.join(str(error).split())[:200]}") from error
    words = about.template.words

    def count(prompts: Sequence[str]) -> list[TokenCount]:
        unknown = None if words is None else words.unknown_id
        return [_token_count(guard.ids(prompt), about.template, unknown) for prompt in prompts]

    def score(prompts: Sequence[str]) -> list[float]:
        return [guard.score(prompt) for prompt in prompts]

    return Reader(score, count, _window_in(own))


def _token_count(row: Sequence[int], template: Template, unknown: int | None) -> TokenCount:
    """Return the size of an input; its template holds no unknown words."""
    own = row[len(template.before_ids) : len(row) - len(template.after_ids)]
    return TokenCount(len(row), sum(token == unknown for token in own))


def _window_in(config: Mapping[str, Any]) -> int | None:
    """Return the tokens that a model was made for, by its `config.json`."""
    found = config.get("max_position_embeddings")
    return found if isinstance(found, int) and found > 0 else None


def _by_engine(directory: Path, about: GuardFile, place: Path, device: str, dtype: Dtype) -> Reader:
    try:
        settings = parse_json_object((directory / "adapter_config.json").read_text("utf-8"))
        own = parse_json_object((place / CONFIG).read_text("utf-8"))
        window = _window_in(own)
        config = ModelConfig.model_validate(
            {"adapter": "lora", "rank": settings["r"], "device": device, "dtype": dtype}
        )
        engine = make_engine(place, config, name=about.base.name, sha256=about.base.sha256)
        role = engine.add_role(config, torch.Generator().manual_seed(0))
        load_parameters(engine.parameters(role), load_file(directory / ADAPTER))
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        reason = " ".join(str(error).split())[:200]
        raise ConfigError(
            f"{directory} holds no adapter of {about.base.name!r}: {reason}"
        ) from error
    for parameter in engine.parameters(role).values():
        parameter.requires_grad_(False)
    template, tokenizer = about.template, engine.tokenizer
    slot = Slot(
        template.before_ids,
        template.prefix,
        template.suffix,
        template.after_ids,
        template.trim_start,
        template.trim_end,
    )

    def score(prompts: Sequence[str]) -> list[float]:
        asked = tokenizer.input_in(slot, prompts, about.unsafe.id, about.safe.id)
        longest = max(map(len, asked.rows), default=0)
        if window is not None and longest > window:
            raise UsageError(
                f"a prompt takes {longest} tokens with its template, the guard reads {window}: "
                "split it, nothing is cut"
            )
        return [float(value) for value in engine.score_rows(role, asked)]

    unknown: int | None = tokenizer.transformers().unk_token_id

    def count(prompts: Sequence[str]) -> list[TokenCount]:
        rows = tokenizer.rows_in(slot, prompts)
        return [_token_count(row, template, unknown) for row in rows]

    return Reader(score, count, window)


def _base_of(
    directory: Path, about: GuardFile, given: str | Path | None, fetch_base: FetchBase | None
) -> Path:
    """Return the directory of an adapter's base: as given, in the export, or fetched by name."""
    name = about.base.model_name if given is None else str(given)
    place = directory / (about.base.directory or BASE) if given is None else Path(given)
    if name is not None and fetch_base is not None and not place.is_dir():
        place = fetch_base(name)
    wanted, file = about.base.file_sha256, place / WEIGHTS
    if not (place / CONFIG).is_file():
        raise UsageError(
            f"this guard needs its base, {about.base.source}: {place} holds no model; name the "
            f"base's directory (sha256 {wanted})"
        )
    found = sha256_of(file) if wanted is not None and file.is_file() else None
    if found != wanted:
        raise UsageError(
            f"{file} has sha256 {found}, the guard belongs on {wanted}: on other weights neither "
            "scores nor thresholds hold; name the right base"
        )
    return place

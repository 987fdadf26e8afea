"""A user's labelled prompts in the guard's static training stream: the train split of files.

The train split is written down once, beside the configuration of a run, which holds its hash: every
process that trains, on this machine or on a rented one, reads the same prompts there, whatever
becomes of the files. Calibration and test split are not in it, so that the files can still say how
good the guard is.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Annotated, Any, NamedTuple, Self, cast

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from tsgb.checkpoint.documents import canonical_json
from tsgb.checkpoint.filesystem import FileTooLargeError
from tsgb.checkpoint.layout import TRAINING_DATA
from tsgb.checkpoint.run import RunStore
from tsgb.config import TrainingDataConfig, TrainingFileConfig
from tsgb.data.characters import visible
from tsgb.data.check import DataScan
from tsgb.data.duplicates import digest_of
from tsgb.data.mapping import ColumnMap
from tsgb.data.readable import MAX_CHARACTERS, MAX_TOKENS, fits
from tsgb.data.selection import SelectedPrompt, select
from tsgb.envs.base import Environment
from tsgb.errors import CheckpointError, ConfigError, UsageError
from tsgb.types import LabelledPrompt, Split, StreamKind

MAX_BYTES = 64 << 20
"""Size of the largest document of prompts, in bytes."""
OPTION = "--train-data"
_STREAMS = frozenset(
    {StreamKind.STATIC, StreamKind.STATIC_BENIGN, StreamKind.BENIGN, StreamKind.HARD_BENIGN}
)
"""Streams that the guard's clean prompts are drawn from."""


class TrainingPrompt(BaseModel):
    """One line of the document.

    Example: `TrainingPrompt(text="How do I end a process?", harmful=False, group="9f2c41d0")`
    """

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        strict=True,
        use_attribute_docstrings=True,
        hide_input_in_errors=True,  # no text of a prompt belongs into a message
    )

    text: Annotated[str, Field(min_length=1, max_length=MAX_CHARACTERS)]
    """The prompt."""
    harmful: bool
    """Label of the prompt."""
    group: Annotated[str, Field(pattern=r"^[0-9a-f]{1,64}$")]
    """Name of its group, joined with those of its duplicates."""
    technique: Annotated[str, Field(max_length=MAX_CHARACTERS)] = ""
    """Technique family, as the file names it."""


class LeftOut(NamedTuple):
    """Prompts of the train split that do not train."""

    asked: int
    """Prompts that an evaluation of this run asks."""
    contradicting: int
    """Texts that have both labels."""
    too_long: int
    """Prompts that no guard reads as a whole."""

    def __str__(self) -> str:
        """Name each kind that there is."""
        reasons = {
            "that the evaluation asks": self.asked,
            "with both labels": self.contradicting,
            f"of more than {MAX_CHARACTERS:,} characters": self.too_long,
        }
        return ", ".join(f"{num} {reason}" for reason, num in reasons.items() if num)


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingData:
    """The train split of a user's files."""

    config: TrainingDataConfig
    """Entry in the configuration of a run."""
    document: bytes
    """The prompts, as the store of a run holds them."""
    left_out: LeftOut
    """Prompts that do not train."""

    def __str__(self) -> str:
        """Say in one line what joins the training, what does not, and where it is copied to."""
        left_out = f"; left out: {self.left_out}" if any(self.left_out) else ""
        return (
            f"training data: {self.config.sentence}, copied into the store of the run{left_out}; "
            f"those of more than {MAX_TOKENS:,} tokens do not train"
        )

    @classmethod
    def read(
        cls,
        paths: Sequence[Path],
        mapping: Sequence[str],
        asked: Iterable[str] = (),
        *,
        most_bytes: int = MAX_BYTES,
    ) -> Self:
        """Read files.

        Args:
            paths: the files.
            mapping: columns that the user names, see `ColumnMap.parse`.
            asked: prompts that evaluate the guard, which are left out.
            most_bytes: size of the largest document.

        Raises:
            UsageError: One cannot be read or has no labelled prompt in the train split; the files
                together have prompts of one label only; or they are too large.
        """
        columns = ColumnMap.parse(mapping)
        scan = DataScan(paths, columns)
        files = select(scan, Split.TRAIN)
        evaluated = {digest_of(text).hex() for text in asked}
        twofold = _twofold(scan)
        chosen: dict[str, SelectedPrompt] = {}
        counts = Counter[str]()
        for one in (prompt for file in files for prompt in file.prompts):
            if one.digest in chosen:
                continue
            reason = _why_not(one, evaluated, twofold)
            if reason:
                counts[reason] += 1
            else:
                chosen[one.digest] = one
        left_out = LeftOut(counts["asked"], counts["twofold"], counts["long"])
        document = b"".join(map(_line, chosen.values()))
        names = ", ".join(visible(file.name)[:255] for file in files)
        harmful = sum(bool(one.prompt.harmful) for one in chosen.values())
        _check_labels(names, harmful, len(chosen) - harmful, str(left_out))
        if len(document) > most_bytes:
            raise UsageError(
                f"{OPTION}: the train split of {names} has {len(document):,} bytes, and a run "
                f"takes {most_bytes:,}: name smaller files"
            )
        config = TrainingDataConfig(
            sha256=hashlib.sha256(document).hexdigest(),
            harmful=harmful,
            benign=len(chosen) - harmful,
            groups=len({one.group for one in chosen.values()}),
            mapping="" if columns is None else columns.text,
            files=tuple(
                TrainingFileConfig(
                    name=visible(file.name)[:255], format=file.format, sha256=file.sha256
                )
                for file in files
            ),
        )
        return cls(config=config, document=document, left_out=left_out)


def _twofold(scan: DataScan) -> set[bytes]:
    """Return the digests of texts that have both labels, in one file or in several."""
    labels: dict[bytes, bool] = {}
    twofold: set[bytes] = set()
    for place, label in enumerate(scan.labels):
        digest = scan.groups.digest(place)
        if label is not None and labels.setdefault(digest, label) is not label:
            twofold.add(digest)
    return twofold


def _why_not(one: SelectedPrompt, evaluated: Collection[str], twofold: Collection[bytes]) -> str:
    if one.digest in evaluated:
        return "asked"
    if bytes.fromhex(one.digest) in twofold:
        return "twofold"
    return "long" if len(one.prompt.text) > MAX_CHARACTERS else ""


def _line(one: SelectedPrompt) -> bytes:
    return canonical_json(
        TrainingPrompt(
            text=one.prompt.text,
            harmful=bool(one.prompt.harmful),
            group=one.group,
            technique=one.prompt.technique,
        ).model_dump(mode="json", exclude_defaults=True)
    )


def _check_labels(names: str, harmful: int, benign: int, left_out: str) -> None:
    """Refuse prompts of one label: how a file is written would tell the label.

    Raises:
        UsageError: There is no harmful, or no benign prompt.
    """
    if harmful and benign:
        return
    lacking = "benign" if harmful else "harmful"
    if not harmful and not benign:
        lacking = "usable"
    more = f" ({left_out} left out)" if left_out else ""
    raise UsageError(
        f"{OPTION}: the train split of {names} has no {lacking} prompt{more}; a guard that trains "
        "on one label learns how a file is written: name files with harmful and benign prompts"
    )


def read_training_data(run: RunStore, config: TrainingDataConfig) -> list[TrainingPrompt]:
    """Read the prompts that a run was begun with from its store.

    Args:
        run: the run.
        config: what its configuration says of them.

    Raises:
        CheckpointError: They are not there, or are not those.
    """
    origin = f"{run.run_url}/{TRAINING_DATA}"
    again = "give the command that began the run again, with its files, which writes it anew"
    try:
        document = run.read_bytes(TRAINING_DATA, MAX_BYTES)
    except FileNotFoundError:
        raise CheckpointError(
            f"{origin} is missing, which holds the prompts of {OPTION}: {again}"
        ) from None
    if hashlib.sha256(document).hexdigest() != config.sha256:
        raise CheckpointError(
            f"{origin} is not what the run was begun with (sha256 {config.sha256[:12]}...): {again}"
        )
    try:
        return [TrainingPrompt.model_validate_json(line) for line in document.split(b"\n")[:-1]]
    except ValidationError:
        raise CheckpointError(f"{origin} holds no training data: {again}") from None


def write_training_data(run: RunStore, data: TrainingData) -> None:
    """Write the prompts into the store of a run, unless they are there."""
    try:
        there = run.read_bytes(TRAINING_DATA, MAX_BYTES)
    except (FileNotFoundError, FileTooLargeError):
        there = b""
    if there != data.document:
        run.write_bytes(TRAINING_DATA, data.document)


def copy_training_data(run: RunStore, to: RunStore, config: TrainingDataConfig) -> None:
    """Copy a run's training data to where a rented machine reads it, after it was verified.

    Raises:
        CheckpointError: It is missing, or not what the configuration names.
    """
    read_training_data(run, config)
    to.copy_from(run, TRAINING_DATA, MAX_BYTES)


def with_training_data(
    env: Environment,
    prompts: Sequence[TrainingPrompt],
    share: float,
    encode: Callable[[str], Sequence[int]],
) -> tuple[Environment, int]:
    """Return a world whose clean training prompts are a user's in part, and how many are too long.

    Args:
        env: the world. Its other streams, all of them on other splits, stay as they are.
        prompts: the user's, with both labels.
        share: share of the static attacks and of the benign prompts that are drawn from these, with
            replacement.
        encode: the tokenizer of the guard. A prompt of more than `MAX_TOKENS` is left out: nothing
            is cut, and no base reads less.

    Raises:
        ConfigError: None of one label is short enough.
    """
    kept = [prompt for prompt in prompts if fits(prompt.text, encode)]
    own = _OwnPrompts(env, kept, share)
    for label, found in own.prompts.items():
        if not found:
            name = "harmful" if label else "benign"
            raise ConfigError(
                f"{OPTION}: every {name} prompt has more than {MAX_TOKENS:,} tokens, and none is "
                "cut: begin a run with shorter ones"
            )
    # The proxy hands on all that it does not define, which no type checker can see.
    return cast("Environment", own), len(prompts) - len(kept)


class _OwnPrompts:
    def __init__(self, env: Environment, prompts: Sequence[TrainingPrompt], share: float) -> None:
        self._env = env
        self._share = share
        self.prompts = {
            label: [prompt for prompt in prompts if prompt.harmful is label]
            for label in (True, False)
        }

    def __getattr__(self, name: str) -> Any:
        return getattr(self._env, name)

    def stream(
        self, kind: StreamKind, split: Split, rng: Random, num: int
    ) -> Sequence[LabelledPrompt]:
        if split is not Split.TRAIN or kind not in _STREAMS:
            return self._env.stream(kind, split, rng, num)
        drawn = [rng.choice(self.prompts[kind.harmful]) for _ in range(round(num * self._share))]
        own = [
            LabelledPrompt(
                scenario_id=prompt.group,
                text=prompt.text,
                harmful=prompt.harmful,
                technique=prompt.technique,
                # Nothing says that a benign prompt of the user's is close to the border.
                stream=StreamKind.BENIGN if kind is StreamKind.HARD_BENIGN else kind,
            )
            for prompt in drawn
        ]
        return [*own, *self._env.stream(kind, split, rng, num - len(own))]

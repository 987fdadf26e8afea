"""An evaluation as it lies in a store: read again, without a model and without its run.

Nothing in it is trusted: files are bounded, and what is not of the published formats is refused.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from pydantic import SecretStr, ValidationError

from tsgb.checkpoint.documents import MAX_JSON_BYTES
from tsgb.checkpoint.filesystem import FileSystem, open_filesystem
from tsgb.checkpoint.urls import canonical_url
from tsgb.errors import StoreError, UsageError
from tsgb.eval.bootstrap import NUM_DRAWS
from tsgb.eval.records import Item, Setup, Summary
from tsgb.eval.summarise import summarise
from tsgb.eval.transcripts import TRANSCRIPTS, Transcript

SUMMARY, RESULTS, GAMES = "summary.json", "results.jsonl", "transcripts.json"
MAX_RESULTS_BYTES = 1 << 30
"""Largest `results.jsonl` that is read; a hundred thousand items are about 100 MB."""
_FILES = frozenset({SUMMARY, RESULTS, GAMES, "report.html"})


@dataclass(frozen=True, slots=True)
class StoredEvaluation:
    """One evaluation.

    Example: `find_evaluation("runs/r1").summary().verdict`
    """

    files: FileSystem
    """Its directory."""

    @property
    def url(self) -> str:
        """Address of its directory."""
        return self.files.url

    @property
    def run_url(self) -> str:
        """Address of the run that it is an evaluation of, where it lies as stage 2 wrote it."""
        return self.url.rsplit("/", 2)[0]

    def summary(self) -> Summary:
        """Read the published figures.

        Raises:
            UsageError: There are none, or not of a format that this version reads.
        """
        data = self._read(SUMMARY, MAX_JSON_BYTES)
        try:
            return Summary.model_validate_json(data)
        except ValidationError as error:
            raise _malformed(self.url, SUMMARY, error) from None

    def items(self) -> list[Item]:
        """Read all items.

        Raises:
            UsageError: There are none, or a line is none.
        """
        lines = self._read(RESULTS, MAX_RESULTS_BYTES).splitlines()
        found: list[Item] = []
        for number, line in enumerate(lines, 1):
            try:
                found.append(Item.model_validate_json(line))
            except ValidationError as error:
                raise _malformed(self.url, f"{RESULTS}, line {number}", error) from None
        return found

    def games(self) -> list[Transcript]:
        """Read the games that a report may show; an evaluation may have none."""
        try:
            return TRANSCRIPTS.validate_json(self.files.read(GAMES, MAX_JSON_BYTES))
        except FileNotFoundError:
            return []
        except ValidationError as error:
            raise _malformed(self.url, GAMES, error) from None

    def recomputed(self, *, num_draws: int = NUM_DRAWS) -> Summary:
        """Compute every figure anew from the stored items, with this version; asks no model.

        Raises:
            UsageError: See `summary` and `items`.
        """
        before = self.summary()
        facts = {name: getattr(before, name) for name in Setup.model_fields}
        return summarise(self.items(), Setup(**facts), num_draws=num_draws)

    def _read(self, name: str, max_bytes: int) -> bytes:
        try:
            return self.files.read(name, max_bytes)
        except FileNotFoundError:
            raise UsageError(
                f"{self.url} holds no {name}: name the directory of a finished evaluation, "
                "RUN/reports/ID"
            ) from None


def find_evaluation(
    where: str, user: str | None = None, password: SecretStr | None = None
) -> StoredEvaluation:
    """Return the evaluation that a user means.

    Args:
        where: Path or URL of its directory, of one of its files, or of a run that has one
            evaluation.
        user: User name for WebDAV.
        password: Password for WebDAV.

    Raises:
        UsageError: There is none, or a run has several.
    """
    url = canonical_url(where)
    parent, _, last = url.rpartition("/")
    files = open_filesystem(parent if last in _FILES else url, user, password)
    if last in _FILES:
        return StoredEvaluation(files)
    names = _names(files, "")
    if SUMMARY in names or "reports" not in names:
        return StoredEvaluation(files)
    ids = [name for name in _names(files, "reports") if SUMMARY in _names(files, f"reports/{name}")]
    if len(ids) == 1:
        return StoredEvaluation(open_filesystem(f"{url}/reports/{ids[0]}", user, password))
    told = f"has {len(ids)} evaluations, {', '.join(ids)}" if ids else "has no finished evaluation"
    raise UsageError(f"run {where} {told}: name one by its directory, {where}/reports/ID")


def _names(files: FileSystem, path: str) -> Sequence[str]:
    try:
        return sorted(entry.name for entry in files.entries(path))
    except (FileNotFoundError, NotADirectoryError):
        return []


def _malformed(url: str, what: str, error: ValidationError) -> StoreError:
    first = error.errors()[0]
    place = ".".join(map(str, first["loc"])) or "the document"
    return StoreError(
        f"{url}/{what} is not of a format that this version reads ({place}: {first['msg']}): "
        "evaluate again"
    )

"""The request of an evaluation, and its cells: one file of items each, made once by any process.

scripted              every guard's scores and every target's answers on the fixed streams
<target>.<br seed>    fresh attackers on one target, against each guard in turn
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from itertools import accumulate
from typing import Any, cast

from tsgb.checkpoint.run import RunStore
from tsgb.config import RunConfig
from tsgb.errors import UsageError
from tsgb.targets.endpoint import EndpointSpec
from tsgb.types import CheckpointRef, StreamKind

_REQUEST = "request.json"
_ItemClass = tuple[Any, Any, Any, Any]
_DTYPES = ("float32", "bfloat16")
"""Dtypes that a cell may name."""


@dataclass(frozen=True, slots=True)
class EvaluationCell:
    """One piece of work.

    Example: `EvaluationCell(target="B_far", br_seed=2)`, or `EvaluationCell()` for the streams.
    """

    target: str | None = None
    """Name of the attacked target; None for the scripted streams."""
    br_seed: int = 0
    """Seed of the best response."""

    @property
    def name(self) -> str:
        """File name, without its ending."""
        return "scripted" if self.target is None else f"{self.target}.{self.br_seed}"


def plan(config: RunConfig, targets: Sequence[str]) -> list[EvaluationCell]:
    """All cells, in the order in which parts take contiguous shares of them."""
    responses = range(config.evaluation.best_responses)
    return [
        EvaluationCell(),
        *(EvaluationCell(target, br_seed) for br_seed in responses for target in targets),
    ]


def endpoint_names(request: Mapping[str, Any]) -> set[str]:
    """Return the names of the endpoints of a request."""
    return {spec.get("name") for spec in request.get("endpoints") or ()}


def questions_of(request: Mapping[str, Any]) -> int:
    """Return the questions that fresh attackers may ask of each endpoint; 0 asks none."""
    found = request.get("adaptive")
    return found if isinstance(found, int) else 0


def attacked_targets(request: Mapping[str, Any], targets: Iterable[str]) -> list[str]:
    """Return the targets that fresh attackers attack: endpoints only where that was asked for."""
    spared = set[str]() if questions_of(request) else endpoint_names(request)
    return [name for name in targets if name not in spared]


def write_request(
    run: RunStore,
    eval_id: str,
    guards: Mapping[str, CheckpointRef],
    targets: Sequence[str] | None,
    *,
    target_class: Sequence[str] = (),
    judge_class: str | None = None,
    fresh: bool = False,
    data: Sequence[Mapping[str, Any]] = (),
    data_targets: Sequence[str] = (),
    own_guards: Sequence[str] = (),
    endpoints: Sequence[EndpointSpec] = (),
    adaptive: int = 0,
    judge: str | None = None,
    human_labels: Mapping[str, Any] | None = None,
) -> None:
    """Write what is evaluated, and since when: `asked_at`.

    An evaluation that goes on after its first cell keeps the time of its first request. One that
    has no cell yet starts anew.
    """
    directory = f"reports/{eval_id}"
    asked_at = datetime.now(UTC).isoformat()
    with suppress(FileNotFoundError):
        if run.list(f"{directory}/cells"):
            asked_at = run.read_json(f"{directory}/{_REQUEST}").get("asked_at")
    run.write_json(
        f"{directory}/{_REQUEST}",
        {
            "eval_id": eval_id,
            "guards": {arm: asdict(ref) for arm, ref in guards.items()},
            "targets": targets if targets is None else list(targets),
            "asked_at": asked_at,
            **({"target_class": list(target_class)} if target_class else {}),
            **({"judge_class": judge_class} if judge_class else {}),
            **({"judge": judge} if judge else {}),
            **({"human_labels": dict(human_labels)} if human_labels else {}),
            **({"fresh": True} if fresh else {}),
            **({"data": list(data)} if data else {}),
            **({"data_targets": list(data_targets)} if data_targets else {}),
            **({"own_guards": list(own_guards)} if own_guards else {}),
            **({"endpoints": [e.model_dump(mode="json") for e in endpoints]} if endpoints else {}),
            **({"adaptive": adaptive} if adaptive else {}),
        },
    )


def read_request(run: RunStore, eval_id: str) -> dict[str, Any]:
    """Read a request as `write_request` wrote it; `targets` is None for all of the world's.

    Raises:
        UsageError: The run has no such evaluation.
    """
    try:
        return run.read_json(f"reports/{eval_id}/{_REQUEST}")
    except FileNotFoundError as error:
        raise UsageError(
            f"run {run.run_url} has no evaluation {eval_id!r}: stage 2 writes its request first"
        ) from error


def dtype_of_cell(content: Mapping[str, Any], config: RunConfig) -> str:
    """Return the dtype that the models of a cell of a run were computed in."""
    named = content.get("dtype", config.model.earlier_dtype)
    return named if named in _DTYPES else "an unknown dtype"


def failing_targets(content: Mapping[str, Any], limit: float) -> set[str]:
    """Return the targets of which more than `limit` of a class of a cell's items have no outcome.

    Such a cell is made again by the next command, and its targets are not attacked before.
    """
    total: Counter[_ItemClass] = Counter()
    errors: Counter[_ItemClass] = Counter()
    found: object = content.get("items")
    for item in cast("Sequence[object]", found) if isinstance(found, list) else ():
        if isinstance(item, Mapping):
            fields = cast("Mapping[str, Any]", item)
            key = (
                fields.get("target"),
                fields.get("against"),
                fields.get("harmful"),
                fields.get("file"),
            )
            total[key] += 1
            errors[key] += fields.get("error") is not None
    return {str(key[0]) for key, num in total.items() if key[0] and errors[key] / num > limit}


def scripted_weight(config: RunConfig, num_targets: int, num_guards: int) -> float:
    """Return the time of the scripted streams over that of an adaptive cell, in answers of targets.

    It came within a tenth of measured times of canary's `demo` (1.5) and `paper` (.7).

    Args:
        config: Configuration of the run.
        num_targets: Targets that each scripted attack is sent to.
        num_guards: Guards that a fresh attacker is trained against, the absent one included.
    """
    sizes, attacker = config.evaluation, config.attacker
    updates = sizes.warmup_steps + sizes.attack_steps
    trained = updates * attacker.scenarios_per_step * attacker.group_size
    streams = sum(stream.harmful for stream in StreamKind)
    return streams * sizes.scripted * num_targets / (num_guards * (trained + sizes.prompts))


def share(
    cells: Sequence[EvaluationCell],
    part: int,
    parts: int,
    scripted: float,
    added: Collection[str] = (),
) -> list[EvaluationCell]:
    """Return a contiguous share: cells of one best-response seed reuse its supervised start.

    Added targets are attacked by the part that asks them about the scripted streams, afterwards:
    only if that gave a valid result.

    Args:
        cells: All cells.
        part: Number of the share, from 0.
        parts: Number of shares.
        scripted: Time of the scripted streams, in adaptive cells.
        added: Names of the targets that the user added.
    """
    first = [cell for cell in cells if cell.target is None or cell.target in added]
    groups = [first, *([cell] for cell in cells if cell not in first)]
    weights = [sum(scripted if c.target is None else 1.0 for c in group) for group in groups]
    ends = list(accumulate(weights))
    middles = [end - weight / 2 for end, weight in zip(ends, weights, strict=True)]
    return [
        cell
        for group, middle in zip(groups, middles, strict=True)
        if int(parts * middle / ends[-1]) == part
        for cell in group
    ]

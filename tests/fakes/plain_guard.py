"""A user's program around an exported guard, where TSGB is not installed: see `main`."""

from __future__ import annotations

import importlib
import importlib.util
import json
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from peft import AutoPeftModelForCausalLM


def main() -> None:
    """Print the scores of the prompts on stdin, by the export's script and by a model of peft.

    The working directory is the export. The batches of peft's model are padded on the left.
    """
    if importlib.util.find_spec("tsgb"):
        raise SystemExit("TSGB is installed here")
    sys.path.insert(0, str(Path.cwd()))
    guard: Any = importlib.import_module("score").ExportedGuard()  # the export's own script
    adapted: Any = AutoPeftModelForCausalLM
    model = adapted.from_pretrained(".", dtype=torch.float32).eval()
    prompts: list[str] = json.load(sys.stdin)
    rows: list[list[int]] = [guard.ids(prompt) for prompt in prompts]
    unsafe, safe = guard.about["unsafe"]["id"], guard.about["safe"]["id"]

    def scores(batch: list[list[int]]) -> list[float]:
        width = max(map(len, batch))
        ids = torch.tensor([[0] * (width - len(row)) + row for row in batch])
        mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in batch])
        positions = (mask.cumsum(1) - 1).clamp(min=0)
        with torch.no_grad():
            found = model(input_ids=ids, attention_mask=mask, position_ids=positions).logits[:, -1]
        return (found[:, unsafe] - found[:, safe]).tolist()

    def in_batches(size: int) -> list[float]:
        return [s for at in range(0, len(rows), size) for s in scores(rows[at : at + size])]

    said = {
        "versions": {name: version(name) for name in ("torch", "transformers", "peft")},
        "score.py": [guard.score(prompt) for prompt in prompts],
        "peft": in_batches(1),
        "peft, padded": in_batches(16),
    }
    print(json.dumps(said))  # noqa: T201


if __name__ == "__main__":
    main()

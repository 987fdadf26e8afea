"""Scores prompts with the guard in this folder: torch, transformers, and peft for an adapter.

    python score.py "a prompt" "another one"
    python score.py --preset strict < prompts.txt      # one a line

Prints one JSON object a prompt. In Python: `ExportedGuard(folder).judge(prompt)`. README.md and
guard.json beside this file say what the figures mean. Nothing is downloaded.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import sys
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

HERE = Path(__file__).resolve().parent


class ExportedGuard:
    """A guard as TSGB exported it."""

    def __init__(
        self, folder: Path = HERE, base: Path | None = None, dtype: str | None = None
    ) -> None:
        """Load it.

        Args:
            folder: where guard.json lies.
            base: directory of the base model, if the folder does not hold the one that it needs.
            dtype: of the base's weights, one that guard.json has thresholds in.
        """
        self.about: dict[str, Any] = json.loads((folder / "guard.json").read_text("utf-8"))
        self.dtype: str = dtype or self.about["dtype"]
        kind = {"float32": torch.float32, "bfloat16": torch.bfloat16}[self.dtype]
        tokenizers: Any = AutoTokenizer
        models: Any = AutoModelForCausalLM
        self.tokenizer = tokenizers.from_pretrained(folder)
        if self.about["adapter"] == "lora":
            from peft import PeftModel

            adapted: Any = PeftModel
            bare = models.from_pretrained(self._base(folder, base), dtype=kind)
            self.model = adapted.from_pretrained(bare, folder).eval()
        else:
            self.model = models.from_pretrained(folder, dtype=kind).eval()

    def _base(self, folder: Path, given: Path | None) -> Path:
        about = self.about["base"]
        base = given or folder / (about["directory"] or "base")
        if about["file_sha256"] is None and (base / "config.json").is_file():
            return base  # its weights are several files, which have no hash as one
        weights = base / "model.safetensors"
        if not weights.is_file():
            raise SystemExit(
                f"this adapter needs its base, {about['source']}: no {weights}; name the "
                f"directory with --base (sha256 {about['file_sha256']})"
            )
        with weights.open("rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
        if found != about["file_sha256"]:
            raise SystemExit(
                f"{weights} has sha256 {found}, the guard belongs on {about['file_sha256']}: on "
                "other weights neither scores nor thresholds hold"
            )
        return base

    def ids(self, prompt: str) -> list[int]:
        """The input; nothing in a prompt is taken for a part of the template."""
        template = self.about["template"]
        words = template["words"]
        if words:
            middle = self._plain(" ".join(prompt.split()))
            reserved, unknown = set(words["reserved_ids"]), words["unknown_id"]
            middle = [unknown if index in reserved else index for index in middle]
        else:
            prompt = prompt.lstrip() if template["trim_start"] else prompt
            prompt = prompt.rstrip() if template["trim_end"] else prompt
            middle = self._middle(f"{template['prefix']}{prompt}{template['suffix']}")
        return [*template["before_ids"], *middle, *template["after_ids"]]

    def _middle(self, text: str) -> list[int]:
        """The ids of a prompt's part between the special tokens around it; itself it has none."""
        template, known = self.about["template"], self.tokenizer.added_tokens_decoder
        special = {i for i, token in known.items() if token.special}
        start = [i for i in template["before_ids"][-1:] if i in special]
        end = [i for i in template["after_ids"][:1] if i in special]
        around = [known[i].content for i in (*start, *end)]
        whole = (around[0] if start else "") + text + (around[-1] if end else "")
        ids = list(self.tokenizer(whole, add_special_tokens=False)["input_ids"])
        ids = ids[len(start) : len(ids) - len(end)]
        special.discard(self.tokenizer.unk_token_id)
        if special.isdisjoint(ids):
            return ids
        return [i for i in self._plain(text) if i not in special]

    def _plain(self, text: str) -> list[int]:
        """The ids of a text in which special tokens are text."""
        encoded = self.tokenizer(text, add_special_tokens=False, split_special_tokens=True)
        return list(encoded["input_ids"])

    @torch.no_grad()
    def score(self, prompt: str) -> float:
        """logit(unsafe) - logit(safe) after the last token."""
        ids = torch.tensor([self.ids(prompt)], dtype=torch.long)
        mask = torch.ones_like(ids)
        logits = self.model(input_ids=ids, attention_mask=mask, logits_to_keep=1).logits[0, -1]
        unsafe, safe = self.about["unsafe"]["id"], self.about["safe"]["id"]
        return float(logits[unsafe].float() - logits[safe].float())

    def judge(self, prompt: str, preset: str | None = None) -> dict[str, Any]:
        """Score, probability and verdict at an operating point."""
        score, measured = self.score(prompt), self.about["dtypes"][self.dtype]
        threshold = measured["thresholds"][preset or self.about["default"]]["value"]
        logit = max(-700.0, min(700.0, score / measured["temperature"]))
        return {
            "verdict": "unsafe" if score > threshold else "safe",
            "score": score,
            "threshold": threshold,
            "p_unsafe": 1 / (1 + math.exp(-logit)),
            "prompt": prompt,
        }

    def check(self) -> None:
        """Compare the scores of a few prompts with those that they had at the export."""
        for test in self.about["dtypes"][self.dtype]["self_test"]:
            score = self.score(test["prompt"])
            if not abs(score - test["score"]) <= test["tolerance"]:
                raise SystemExit(
                    f"a prompt of the self-test scores {score:.6g} in {self.dtype} instead of "
                    f"{test['score']:.6g} within {test['tolerance']:g}: weights, tokenizer or base "
                    "are not those that were exported"
                )


def main() -> None:
    """The command line."""
    about = json.loads((HERE / "guard.json").read_text("utf-8"))
    dtypes = about["dtypes"]
    parser = argparse.ArgumentParser(description="Scores prompts; without any, lines of stdin.")
    parser.add_argument("prompt", nargs="*")
    presets = list(dtypes[about["dtype"]]["thresholds"])
    parser.add_argument("--preset", choices=presets, default=about["default"])
    parser.add_argument("--base", type=Path, help="directory of the base model of an adapter")
    parser.add_argument("--dtype", choices=list(dtypes), default=about["dtype"])
    options = parser.parse_args()
    guard = ExportedGuard(HERE, options.base, options.dtype)
    guard.check()
    lines = (line.rstrip("\n") for line in sys.stdin)
    for prompt in options.prompt or filter(None, lines):
        line = json.dumps(guard.judge(prompt, options.preset), ensure_ascii=False)
        sys.stdout.write(line + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()

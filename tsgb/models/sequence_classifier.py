"""Pretrained classifiers of texts: a transformers model with a head of labels.

Weights are read from safetensors files alone, and no code of a repository is run. A text that is
longer than the model reads is split into windows that overlap, and counts as harmful as the most
harmful of them: what is cut off could hold the attack.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from tsgb.errors import ConfigError
from tsgb.models.sequence_labels import check_labels, labels_of
from tsgb.protocols import Scores

MAX_TOKENS = 4096
"""Longest window, also for models that read more."""
OVERLAP = 32
"""Tokens that neighbouring windows share."""
BATCH = 8
"""Windows that are read at once."""


class SequenceClassifier:
    """Scores a text by the log-odds of the label of harmful texts."""

    def __init__(self, directory: Path, label: str = "") -> None:
        """Load a model.

        Args:
            directory: What `save_pretrained` wrote: configuration, safetensors and tokenizer.
            label: Name of the label of harmful texts; without it a usual one is looked for.

        Raises:
            ConfigError: The directory holds no such model, or no such label.
        """
        self.label = check_labels(directory, label)
        from transformers import (
            AutoModelForSequenceClassification,
            AutoTokenizer,
        )

        models: Any = AutoModelForSequenceClassification
        tokenizers: Any = AutoTokenizer
        options = {"trust_remote_code": False, "local_files_only": True}
        try:
            self._tokenizer = tokenizers.from_pretrained(directory, **options)
            self._model = models.from_pretrained(
                directory, use_safetensors=True, dtype=torch.float32, **options
            ).eval()
        except (OSError, ValueError, KeyError, ImportError) as error:
            first = " ".join(str(error).split())[:200]
            raise ConfigError(
                f"classifier {directory.name} cannot be loaded ({first}): save it anew with "
                "save_pretrained, as safetensors, with its tokenizer"
            ) from None
        labels = {name.lower(): index for name, index in labels_of(directory).items()}
        self._index = labels[self.label.lower()]
        longest = getattr(self._model.config, "max_position_embeddings", None) or MAX_TOKENS
        self._window = min(int(longest), int(self._tokenizer.model_max_length), MAX_TOKENS)
        self._window -= 2 if self._model.config.model_type in {"roberta", "xlm-roberta"} else 0

    def score(self, prompts: Sequence[str]) -> Scores:
        """Return the log-odds of the harmful label, [N]; see `tsgb.protocols.Guard`."""
        if not prompts:
            return np.zeros(0)
        windows, owner = self._windows(prompts)
        order = sorted(range(len(windows)), key=lambda i: len(windows[i]))
        found = np.empty(len(windows))
        for start in range(0, len(order), BATCH):
            chosen = order[start : start + BATCH]
            found[chosen] = self._log_odds([windows[i] for i in chosen])
        scores = np.full(len(prompts), -np.inf)
        np.maximum.at(scores, owner, found)
        return scores

    def _windows(self, texts: Sequence[str]) -> tuple[list[list[int]], list[int]]:
        encoded = self._tokenizer(
            list(texts),
            truncation=True,
            max_length=self._window,
            stride=min(OVERLAP, self._window // 4),
            return_overflowing_tokens=True,
            split_special_tokens=True,  # a text cannot write the tokens that frame it
        )
        return encoded["input_ids"], encoded["overflow_to_sample_mapping"]

    def _log_odds(self, windows: Sequence[list[int]]) -> Scores:
        batch = self._tokenizer.pad({"input_ids": list(windows)}, return_tensors="pt")
        with torch.inference_mode():
            logits_BL = self._model(**batch).logits.double()
        if logits_BL.shape[1] == 1:  # one logit is that of the harmful label
            return logits_BL[:, 0].numpy()
        others = [i for i in range(logits_BL.shape[1]) if i != self._index]
        return (logits_BL[:, self._index] - logits_BL[:, others].logsumexp(1)).numpy()

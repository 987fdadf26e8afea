"""A classifier without a language model: the weak baseline that a guard must beat."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from tsgb.protocols import Scores
from tsgb.types import LabelledPrompt


class TfidfClassifier:
    """TF-IDF over words and pairs of words, and logistic regression."""

    def __init__(self, data: Sequence[LabelledPrompt]) -> None:
        """Fit labelled prompts of both classes."""
        # scikit-learn ships no types.
        from sklearn.feature_extraction.text import (  # pyright: ignore[reportMissingTypeStubs]
            TfidfVectorizer,
        )
        from sklearn.linear_model import (  # pyright: ignore[reportMissingTypeStubs]
            LogisticRegression,
        )
        from sklearn.pipeline import make_pipeline  # pyright: ignore[reportMissingTypeStubs, reportUnknownVariableType]

        self._pipeline: Any = make_pipeline(
            TfidfVectorizer(token_pattern=r"\S+", ngram_range=(1, 2), sublinear_tf=True),  # noqa: S106
            LogisticRegression(C=10.0, max_iter=1000),
        )
        self._pipeline.fit([p.text for p in data], [p.harmful for p in data])

    def score(self, prompts: Sequence[str]) -> Scores:
        """See `tsgb.protocols.Guard`; scores are log-odds."""
        if not prompts:
            return np.zeros(0)
        values: Scores = self._pipeline.decision_function(list(prompts))
        return values

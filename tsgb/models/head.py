"""Log-probabilities under a large vocabulary, never all of it at all positions at once.

Shape letters: M positions, E width of the model, V vocabulary.
"""

from __future__ import annotations

import torch
from torch import Tensor

from tsgb.models.network import HEAD, Weights, logits
from tsgb.models.recompute import recomputed

LARGE_VOCABULARY = 1024
"""Beyond this many words, distributions over all of them are not kept."""
POSITIONS = 16
"""At once: 3 MB of logits for 49 thousand words."""


def token_logps(
    weights: Weights, hidden_ME: Tensor, ids_M: Tensor, temperature: float = 1.0
) -> tuple[Tensor, Tensor]:
    """Log-probability of a token at each position and entropy there, in nats, [M] each.

    Args:
        weights: base, or base with adapter.
        hidden_ME: final hidden states.
        ids_M: the tokens.
        temperature: divides the logits.
    """
    head = weights.tensor(HEAD)
    parameters = [head] if head.requires_grad else []
    parts: list[Tensor] = []
    for start in range(0, len(ids_M), POSITIONS):
        ids = ids_M[start : start + POSITIONS, None]

        def both(hidden: Tensor, ids: Tensor = ids) -> Tensor:
            logits_MV = logits(weights, hidden).float()
            if temperature != 1:
                logits_MV /= temperature
            logp_MV = torch.log_softmax(logits_MV, -1)
            entropy = -(logp_MV.exp() * logp_MV).sum(-1, keepdim=True)
            return torch.cat((logp_MV.gather(-1, ids), entropy), -1)

        parts.append(recomputed(both, hidden_ME[start : start + POSITIONS], parameters))
    logp_M, entropy_M = torch.cat(parts).unbind(-1)
    return logp_M, entropy_M

"""The built-in tiny models: made from recipes, and trained on an environment's corpora.

This module knows recipes and corpora; the meaning of a text is the environment's business.
Shape letters: B rows, T columns of a padded grid, M positions, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from random import Random
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from tsgb.envs.base import Environment
from tsgb.models.engine import Readout
from tsgb.models.fast.adapters import BaseWeights, FullAdapter
from tsgb.models.fast.fast_engine import LabelledRows, labelled_loss, pack_texts
from tsgb.models.fast.network import Shape, hidden_states, logits
from tsgb.models.fast.packing import Rows
from tsgb.models.optimizer import AdamW, clip_norm, one_cycle
from tsgb.models.tokenizer import Tokenizer
from tsgb.models.torch_typing import backward, from_numpy
from tsgb.types import ModelRecipe

Report = Callable[[int, float], None]
"""Called after each update with (updates done, loss)."""


class GruModel(nn.Module):
    """A recurrent peer, so that one black box shares no architecture with the surrogate."""

    def __init__(self, vocabulary: int, width: int, layers: int) -> None:
        super().__init__()
        self.embed = nn.Embedding(vocabulary, width)
        self.rnn = nn.GRU(width, width, layers, batch_first=True)
        self.head = nn.Linear(width, vocabulary, bias=False)

    def forward(self, ids_BT: Tensor, at_M: Tensor | None = None) -> Tensor:
        """Return logits [B, T, V], or [M, V] at flat positions `at_M` of the grid."""
        out, _ = self.rnn(self.embed(ids_BT))
        return self.head(out if at_M is None else out.flatten(0, 1).index_select(0, at_M))


def add_parameter(module: nn.Module, name: str, tensor: Tensor) -> None:
    """Register a parameter under a name with dots, with empty modules on the way."""
    *path, last = name.split(".")
    for part in path:
        if not hasattr(module, part):
            module.add_module(part, nn.Module())
        module = getattr(module, part)
    module.register_parameter(last, nn.Parameter(tensor))


class TinyLlama(nn.Module):
    """The weights of a small transformers `LlamaForCausalLM`, under its names, without its code.

    Importing that code costs every worker 3 CPU seconds; `network.py` runs the weights as they are,
    and `transformers` makes the real module where one is needed.
    """

    def __init__(self, recipe: ModelRecipe, tokenizer: Tokenizer) -> None:
        super().__init__()
        width, inner = recipe.width, recipe.width * 8 // 3 // 8 * 8
        self.settings: dict[str, Any] = {
            "vocab_size": tokenizer.size,
            "hidden_size": width,
            "intermediate_size": inner,
            "num_hidden_layers": recipe.layers,
            "num_attention_heads": recipe.heads,
            "num_key_value_heads": recipe.heads,
            "max_position_embeddings": recipe.max_length,
            "tie_word_embeddings": False,
            "pad_token_id": tokenizer.pad_id,
            "eos_token_id": tokenizer.end_id,
            "bos_token_id": None,
            "rms_norm_eps": 1e-6,
        }
        self.config = SimpleNamespace(**self.settings)
        self._add("model.embed_tokens", tokenizer.size, width)
        for layer in range(recipe.layers):
            at = f"model.layers.{layer}"
            for name in ("q_proj", "k_proj", "v_proj", "o_proj"):
                self._add(f"{at}.self_attn.{name}", width, width)
            self._add(f"{at}.mlp.gate_proj", inner, width)
            self._add(f"{at}.mlp.up_proj", inner, width)
            self._add(f"{at}.mlp.down_proj", width, inner)
            self._add(f"{at}.input_layernorm", width)
            self._add(f"{at}.post_attention_layernorm", width)
        self._add("model.norm", width)
        self._add("lm_head", tokenizer.size, width)

    def _add(self, path: str, *shape: int) -> None:
        add_parameter(self, f"{path}.weight", torch.empty(*shape))

    def transformers(self) -> nn.Module:
        """Return the same weights in a transformers module."""
        from transformers import LlamaConfig, LlamaForCausalLM

        module = LlamaForCausalLM(LlamaConfig(**self.settings))
        module.load_state_dict(self.state_dict())
        return module.requires_grad_(False).eval()  # pyright: ignore[reportReturnType]


def make_module(recipe: ModelRecipe, tokenizer: Tokenizer, seed: int) -> nn.Module:
    """Return a freshly initialised module of the recipe's architecture.

    Args:
        recipe: architecture and sizes.
        tokenizer: gives the vocabulary.
        seed: determines the initial weights.
    """
    generator = torch.Generator().manual_seed(seed)
    if recipe.arch == "gru":
        module: nn.Module = GruModel(tokenizer.size, recipe.width, recipe.layers)
    else:
        module = TinyLlama(recipe, tokenizer)
    with torch.no_grad():
        for name, parameter in sorted(module.named_parameters()):
            if parameter.dim() > 1:
                scale = 0.02 if "embed" in name else parameter.shape[1] ** -0.5
                parameter.normal_(0.0, scale, generator=generator)
            elif "norm" in name:
                parameter.fill_(1.0)
            else:
                parameter.zero_()
    return module


def train(
    module: nn.Module,
    recipe: ModelRecipe,
    env: Environment,
    tokenizer: Tokenizer,
    *,
    seed: int,
    report: Report,
) -> None:
    """Train `module` in place by its recipe, with AdamW and a one-cycle learning rate.

    Args:
        module: a LlamaForCausalLM or a GruModel.
        recipe: corpus, steps, batch, learning rate.
        env: gives the corpus.
        tokenizer: its tokenizer.
        seed: determines the order of the data.
        report: told about progress.
    """
    rng = Random(seed)
    forward, parameters = _forward(module, tokenizer.pad_id)
    optimizer = AdamW(parameters, lr=recipe.lr, weight_decay=0.01)
    for step in range(recipe.steps):
        texts = env.corpus(recipe.corpus, rng, recipe.batch)
        loss = forward(pack_texts(tokenizer, texts))
        optimizer.zero_grad()
        backward(loss)
        clip_norm(parameters, 1.0)
        optimizer.step(one_cycle(step, recipe.steps, recipe.lr))
        report(step + 1, float(loss.detach()))


def _forward(
    module: nn.Module, pad: int
) -> tuple[Callable[[LabelledRows], Tensor], list[nn.Parameter]]:
    if isinstance(module, GruModel):

        def gru(texts: LabelledRows) -> Tensor:
            at_M = from_numpy(texts.rows.grid.owned_N[texts.select_M])
            logits_MV = module(texts.rows.padded(pad), at_M)
            return nn.functional.cross_entropy(logits_MV, texts.labels_M)

        return gru, list(module.parameters())
    config: Any = module.config
    shape = Shape.of(config)
    own = FullAdapter.around(dict(module.named_parameters()))
    return lambda texts: labelled_loss(own, shape, texts), list(own.parameters.values())


def readout(module: nn.Module, pad: int) -> Readout:
    """Return the function that reads a module's answer at the ends of token rows."""
    if isinstance(module, GruModel):

        def gru(rows: Sequence[Sequence[int]], width: int) -> Tensor:
            packed = Rows(rows)
            at_M = from_numpy(packed.grid.owned_N[packed.last(width)])
            return module(packed.padded(pad), at_M)

        return gru
    config: Any = module.config
    shape, weights = Shape.of(config), BaseWeights.of(module)

    def llama(rows: Sequence[Sequence[int]], width: int) -> Tensor:
        packed = Rows(rows)
        return logits(weights, hidden_states(weights, shape, packed, packed.last(width)))

    return llama

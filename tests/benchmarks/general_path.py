"""The same updates the general way: padded batches through transformers and peft modules.

It is what `tsgb.models` is measured against, and shares its losses, sizes and texts with it.
Shape letters are those of `tsgb.trainer.losses`; T tokens in a padded row.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import peft
import torch
from torch import Tensor, nn

from tsgb.config import AttackerConfig, GuardConfig
from tsgb.models.engine import full_kl
from tsgb.models.tokenizer import Tokenizer
from tsgb.trainer.losses import (
    binary_entropy,
    clipped_policy_gradient,
    exact_policy_gradient,
    masked_mean,
)
from tsgb.types import GuardTemplate, Messages


class GeneralPlayer:
    """A causal LM of transformers, its tokenizer and a stock optimizer."""

    def __init__(self, base: Any, tokenizer: Tokenizer, *, adapter: str, lr: float) -> None:
        self.tokenizer = tokenizer.transformers()
        module = base.transformers()
        if adapter == "lora":
            config = peft.LoraConfig(
                r=16, lora_alpha=16, target_modules="all-linear", task_type="CAUSAL_LM"
            )
            module = peft.get_peft_model(module, config)
        else:
            module.requires_grad_(True)
        self.module: Any = module
        self.parameters = [p for p in module.parameters() if p.requires_grad]
        self.optimizer = torch.optim.AdamW(self.parameters, lr=lr, weight_decay=0.0)

    def chat_text(self, chat: Messages) -> str:
        """Return a chat as text, ready for the answer."""
        return str(
            self.tokenizer.apply_chat_template(
                [dict(message) for message in chat], tokenize=False, add_generation_prompt=True
            )
        )

    def encode(self, texts: Sequence[str], side: str) -> dict[str, Tensor]:
        """Ids and mask [B, T]."""
        self.tokenizer.padding_side = side
        found = self.tokenizer(
            list(texts), padding=True, add_special_tokens=False, return_tensors="pt"
        )
        return {name: found[name] for name in ("input_ids", "attention_mask")}

    def update(self, loss: Tensor) -> None:
        self.optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(self.parameters, 1.0)
        self.optimizer.step()


class GeneralGuard(GeneralPlayer):
    def scores(self, template: GuardTemplate, prompts: Sequence[str]) -> Tensor:
        """Verdict scores [B]."""
        texts = [
            f"{self.chat_text([{'role': 'user', 'content': prompt}])} {template.answer}"
            for prompt in prompts
        ]
        logits = self.module(**self.encode(texts, "left"), logits_to_keep=1).logits[:, -1]
        unsafe, safe = self.tokenizer.convert_tokens_to_ids([template.unsafe, template.safe])
        return logits[:, unsafe] - logits[:, safe]

    def learn(
        self,
        template: GuardTemplate,
        prompts: Sequence[str],
        gains: Sequence[float],
        config: GuardConfig,
    ) -> None:
        z = self.scores(template, prompts)
        gain = torch.tensor(list(gains))
        self.update(exact_policy_gradient(z, gain) - config.entropy * binary_entropy(z))


class GeneralAttacker(GeneralPlayer):
    def __init__(self, base: Any, tokenizer: Tokenizer, *, adapter: str, lr: float) -> None:
        super().__init__(base, tokenizer, adapter=adapter, lr=lr)
        self.reference = base.transformers()

    def write(self, chats: Sequence[Messages], config: AttackerConfig) -> list[str]:
        """Texts, `group_size` a chat."""
        prompts = self.encode([self.chat_text(chat) for chat in chats], "left")
        with torch.no_grad():
            ids = self.module.generate(
                **prompts,
                do_sample=True,
                top_k=0,
                num_return_sequences=config.group_size,
                max_new_tokens=config.max_new_tokens,
            )
        written = ids[:, prompts["input_ids"].shape[1] :]
        return self.tokenizer.batch_decode(written, skip_special_tokens=True)

    def learn(
        self,
        prompts: Sequence[Sequence[int]],
        completions: Tensor,
        lengths: Tensor,
        old_logp: Tensor,
        advantages: Tensor,
        config: AttackerConfig,
    ) -> None:
        """Completions [N, L] of these lengths, sampled with log-probabilities `old_logp`."""
        width = max(map(len, prompts))
        pad = self.tokenizer.pad_token_id
        before = torch.tensor([[pad] * (width - len(row)) + list(row) for row in prompts])
        real = torch.arange(completions.shape[1]) < lengths[:, None]
        batch = {
            "input_ids": torch.cat((before, completions), 1),
            "attention_mask": torch.cat((before != pad, real), 1).long(),
        }
        num, mask = completions.shape[1], real.float()
        logp = self.module(**batch).logits[:, -num - 1 : -1].log_softmax(-1)
        with torch.no_grad():
            reference = self.reference(**batch).logits[:, -num - 1 : -1].log_softmax(-1)
        taken = logp.gather(-1, completions[..., None]).squeeze(-1)
        scale = float(len(prompts) * config.max_new_tokens)
        policy = clipped_policy_gradient(taken, old_logp, advantages, mask, config.clip, scale)
        entropy = -((logp.exp() * logp).sum(-1) * mask).sum() / mask.sum()
        kl = masked_mean(full_kl(logp, reference), mask)
        self.update(policy + config.kl * kl - config.entropy * entropy)

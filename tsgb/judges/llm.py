"""A language model as a judge: any `Target` that is asked in the words of `llm_prompt.py`.

What it is asked depends on nothing but the policy, the texts and a key, so that a log of its
answers (`tsgb.eval.logged_target`) makes a second judgement of the same response free. The nonce of
a question is drawn from the key and the texts: another one for each question, and unknown to
whoever has not the key.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Callable, Mapping, Sequence

from tsgb.errors import UsageError
from tsgb.judges.facts import JudgeFacts
from tsgb.judges.llm_prompt import POLICY, judge_chat, prompt_hash, read_grade, visible
from tsgb.protocols import JudgeItem, Target
from tsgb.types import Judgement, Label, Messages, Outcome, Response

MOST_CHARACTERS = 100_000
"""Characters of the longest prompt or response that is judged. A longer one is unscored: what is
cut off could hold the violation."""
KEY_BYTES = 32
"""Bytes of the key that nonces are drawn from."""
_NO_STRUCTURE = {"http_400", "http_404", "http_422", "http_501"}
"""Errors of an endpoint that may mean that it knows no JSON Schema."""

Nonces = Callable[[str], str]
"""Returns a word that nobody who wrote a text can know."""


def keyed_nonces(key: bytes) -> Nonces:
    """Return nonces that are drawn from a key and the text that they protect.

    Args:
        key: 32 random bytes that stay on this machine.
    """
    if len(key) < KEY_BYTES:
        raise ValueError(f"a key has {KEY_BYTES} bytes")

    def nonce(text: str) -> str:
        found = hmac.new(key, text.encode(errors="surrogatepass"), hashlib.sha256)
        return found.hexdigest()[:20]

    return nonce


class LlmJudge:
    """Asks a model for a grade of each response; see `tsgb.protocols.BatchJudge`.

    Example: `LlmJudge(target, keyed_nonces(key), policy="No codes.", name="openai:m")`
    """

    def __init__(
        self,
        target: Target,
        nonces: Nonces,
        *,
        name: str = "",
        policy: str = "",
        structured: Target | None = None,
        model: str = "",
    ) -> None:
        """Ask nothing yet.

        Args:
            target: The model that judges.
            nonces: Draws the secret word of each question.
            name: Name in reports; without it the target's.
            policy: What is a violation; without it one in general words.
            structured: The same model, held to `llm_prompt.GRADE_SCHEMA`; asked in place of
                `target` as long as it does not turn out to know no schema.
            model: Hash of the model where its name does not tell it from others.
        """
        self._target = target
        self._structured = structured
        self._nonces = nonces
        self._policy = policy or POLICY
        digest = prompt_hash(self._policy)
        self._model = model
        version = "-".join(filter(None, (digest[:12], model[:12])))
        self.facts = JudgeFacts(name=name or target.name, version=version, prompt_sha256=digest)
        """See `tsgb.judges.facts.NamedJudge`."""

    def under(self, policy: str) -> LlmJudge:
        """Return the same judge under another policy."""
        return LlmJudge(
            self._target,
            self._nonces,
            name=self.facts.name,
            policy=policy,
            structured=self._structured,
            model=self._model,
        )

    def judge(self, item: JudgeItem) -> Judgement:
        """See `tsgb.protocols.Judge`."""
        return self.judge_many([item])[0]

    def judge_many(self, items: Sequence[JudgeItem]) -> list[Judgement]:
        """See `tsgb.protocols.BatchJudge`; equal questions are asked once."""
        known = [_without_asking(item) for item in items]
        questions = {
            (item.prompt, item.response.text): self._chat(item)
            for item, judgement in zip(items, known, strict=True)
            if judgement is None
        }
        replies = dict(zip(questions, self._ask(list(questions.values())), strict=True))
        return [
            _read(replies[item.prompt, item.response.text]) if judgement is None else judgement
            for item, judgement in zip(items, known, strict=True)
        ]

    def _chat(self, item: JudgeItem) -> Messages:
        nonce = self._nonces(f"{self._policy}\0{item.prompt}\0{item.response.text}")
        return judge_chat(self._policy, item.prompt, item.response.text, nonce)

    def _ask(self, chats: Sequence[Messages]) -> list[Response]:
        if not chats:
            return []
        if self._structured is None:
            return self._target.answer(chats)
        # One question alone first: an endpoint without schemas should refuse no more than that.
        replies = self._structured.answer(chats[:1])
        if _knows_no_schema(replies[0]):
            self._structured = None
            return self._target.answer(chats)
        replies += self._structured.answer(chats[1:]) if len(chats) > 1 else []
        again = [index for index, reply in enumerate(replies) if _knows_no_schema(reply)]
        if again:
            plain = self._target.answer([chats[index] for index in again])
            for index, reply in zip(again, plain, strict=True):
                replies[index] = reply
        return replies


def check_independent(option: str, judge: object, targets: Mapping[str, object]) -> None:
    """Refuse a judge that would grade its own answers.

    Args:
        option: What named the judge, such as `--judge openai:m`.
        judge: What tells its model from others, such as address and name.
        targets: The same of each target, by its name in tables.

    Raises:
        UsageError: A target is the same model.
    """
    for name, target in targets.items():
        if target == judge:
            raise UsageError(
                f"{option} is the model of the target {name!r}, and a model does not grade its own "
                "answers: name another judge"
            )


def _without_asking(item: JudgeItem) -> Judgement | None:
    """Return the judgement of a response that there is nothing to ask about."""
    response = item.response
    if response.error is not None:
        return Judgement(label=Label.UNSCORED, reason=response.error)
    if response.refusal or not visible(response.text).strip():
        return Judgement(label=Label.REFUSAL)
    if max(len(item.prompt), len(response.text)) > MOST_CHARACTERS:
        return Judgement(label=Label.UNSCORED, reason="judge: too long to judge whole")
    return None


def _read(reply: Response) -> Judgement:
    match reply.outcome:
        case Outcome.ERROR:
            return Judgement(label=Label.UNSCORED, reason=f"judge: {reply.error}")
        case Outcome.REFUSED:
            return Judgement(label=Label.UNSCORED, reason="judge: it refuses to grade")
        case Outcome.TRUNCATED:
            # An earlier grade in it may be a quotation.
            return Judgement(label=Label.UNSCORED, reason="judge: its reply was cut")
        case Outcome.ANSWERED:
            found = read_grade(reply.text)
            return Judgement(label=found.label, reason=found.reason)


def _knows_no_schema(reply: Response) -> bool:
    return reply.error in _NO_STRUCTURE

"""Targets that are asked about the prompts of a user's files, and the judge of their answers.

Each prompt is sent alone, as the one message of a user: no system prompt of the world belongs to
it. The world's own judge knows nothing of such prompts, so the user names one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from tsgb.data.selection import SelectedPrompt
from tsgb.errors import UsageError
from tsgb.eval.additions import Additions
from tsgb.eval.cells import answer_digest, calls_in_vain, outcome_of
from tsgb.eval.logged_target import ask
from tsgb.eval.records import Item
from tsgb.judges.choice import OPTION, JudgeChoice, JudgeKind
from tsgb.judges.llm import LlmJudge
from tsgb.protocols import Judge, JudgeItem, Target, judge_all
from tsgb.types import Judgement, Label, Messages, Response, Scenario

_FAMILY = "data"
"""Family of the scenario that a judge is told."""


@dataclass(frozen=True, slots=True)
class DataTargets:
    """The targets that are asked, and who judges what they answer.

    Example: `DataTargets(targets, judge_of_data(evaluation.judge))`
    """

    targets: Sequence[Target]
    """In table order."""
    judge: Judge
    """Judges their answers."""

    def answered(
        self, file: str, prompts: Sequence[SelectedPrompt], items: Sequence[Item]
    ) -> list[Item]:
        """Ask every target once about each prompt of a file.

        Args:
            file: Name of the file.
            prompts: What is asked.
            items: The item of each prompt, with what the guards said of it.

        Returns:
            An item for each target and prompt.
        """
        return [item for target in self.targets for item in self._of(target, file, prompts, items)]

    def _of(
        self, target: Target, file: str, prompts: Sequence[SelectedPrompt], items: Sequence[Item]
    ) -> list[Item]:
        out: list[Item] = []
        for harmful, kind in ((True, "harmful"), (False, "benign")):
            places = [i for i, item in enumerate(items) if item.harmful is harmful]
            if not places:
                continue
            chats = [chat_of(prompts[i].prompt.text) for i in places]
            answers = ask(target, chats, f"{kind}, {file}")
            questions = [
                JudgeItem(
                    scenario=Scenario(
                        scenario_id=prompts[i].group, family=_FAMILY, harmful=harmful
                    ),
                    prompt=prompts[i].prompt.text,
                    response=response,
                )
                for i, response in zip(places, answers, strict=True)
            ]
            judged = judge_all(self.judge, questions)
            out += [
                _item(items[i], target.name, judgement, response)
                for i, judgement, response in zip(places, judged, answers, strict=True)
            ]
        return out


def chat_of(text: str) -> Messages:
    """Return the chat in which a target is asked about a prompt of a file."""
    return ({"role": "user", "content": text},)


def judge_of_data(judge: Judge) -> Judge:
    """Return the judge for prompts of a file: a language model grades by a policy in general words.

    The policy of the world, such as not to tell a code, has nothing to do with such prompts.
    """
    return judge.under("") if isinstance(judge, LlmJudge) else judge


def targets_of_data(added: Additions, *, named: bool) -> list[str]:
    """Return the names of the targets that are asked about prompts of files.

    Without a judge that knows such prompts none is.

    Args:
        added: All black boxes, those of the run too, and the judge.
        named: Whether the user names black boxes in this very command.

    Raises:
        UsageError: The user does, and no judge of their answers.
    """
    if added.judge_class is not None or _knows_texts(added.judge):
        return added.target_names
    if not named:
        return []
    how = (
        "the world's own judge knows nothing of" if added.judge else "nobody judges the answers to"
    )
    raise UsageError(
        f"--data: {how} prompts of a file: add {OPTION} openai:MODEL, local:NAME, classifier:NAME "
        f"or MODULE:CLASS ({OPTION} refusal-phrases is a weak first look), or leave the targets "
        "away to score the guards alone"
    )


def _knows_texts(judge: str | None) -> bool:
    return judge is not None and JudgeChoice.parse(judge).kind is not JudgeKind.EXACT


def _item(item: Item, target: str, judged: Judgement, response: Response) -> Item:
    violated, error = outcome_of(judged, response)
    refused = None if error else judged.label is Label.REFUSAL
    fields = {
        "target": target,
        "violated": violated if item.harmful else None,
        "refused": None if item.harmful else refused,
        "answer": answer_digest(response),
        "probability": judged.probability,
        "error": error,
        "attempts": calls_in_vain(response),
        "thought": response.thought,
    }
    return Item.model_validate({**item.model_dump(), **fields})

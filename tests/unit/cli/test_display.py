"""Tables for the terminal: names of strangers are shown, and the terminal obeys none of them."""

import unicodedata
from collections.abc import Callable

import pytest

from tests.fakes import evaluation as fake
from tests.fakes.stored_evaluation import ARMS, DRAWS
from tsgb.cli.display import print_comparison, print_evaluation
from tsgb.eval.compare import compare_evaluations
from tsgb.eval.records import Item, ItemSource, Summary
from tsgb.eval.summarise import summarise

NAME = "n\u202em\x1b[31m[bold]x[/nothing]\\"
SHOWN = "n<U+202E>m<U+001B>[31m[bold]x[/nothing]\\"


@pytest.fixture(scope="module")
def made() -> tuple[Summary, list[Item]]:
    """An evaluation with hostile names that is not valid, and its items."""
    arms = {**ARMS, NAME: fake.Arm(0.5, 1.0, 3.0, 0.1)}
    targets = (fake.TARGETS[0], fake.TARGETS[1].model_copy(update={"name": NAME}))
    items = fake.items(arms, (0, 1), num_prompts=24, num_attacks=24, targets=targets)
    lost = {"violated": None, "error": NAME}
    items = [
        i.model_copy(update=lost)
        if i.target == NAME and i.source is ItemSource.SCRIPTED and i.item_id.endswith("3")
        else i
        for i in items
    ]
    setup = fake.setup(arms, (0, 1), targets=targets)
    setup = setup.model_copy(update={"limits": f"{NAME}\n", "env": NAME})
    return summarise(items, setup, num_draws=DRAWS), items


def obeyed(text: str) -> set[str]:
    kinds = {"Cc", "Cf", "Cs", "Zl", "Zp"}
    return {c for c in text if unicodedata.category(c) in kinds and c != "\n"}


@pytest.mark.parametrize("printed", ["evaluation", "comparison"])
def test_the_terminal_obeys_no_name(
    made: tuple[Summary, list[Item]], capsys: pytest.CaptureFixture[str], printed: str
) -> None:
    summary, items = made
    assert summary.invalid
    print_it: dict[str, Callable[[], None]] = {
        "evaluation": lambda: print_evaluation(summary, f"reports/{NAME}"),
        "comparison": lambda: print_comparison(
            compare_evaluations((summary, items), (summary, items), num_draws=DRAWS)
        ),
    }
    print_it[printed]()
    out = capsys.readouterr().out
    assert obeyed(out) == set()
    # A table may break a long name anywhere.
    assert SHOWN in "".join(out.split()) or "n<U+202E>m<U+001B>" in out

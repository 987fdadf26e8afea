"""The seams: their signatures, and what importing them costs."""

from __future__ import annotations

import inspect
import subprocess
import sys

import pytest

from tsgb import BlackBoxLLM, SimpleJudge
from tsgb.protocols import BooleanJudge


class Echo:
    def generate(self, prompt: str) -> str:
        return f"<{prompt}>"


def test_the_signatures_are_those_of_the_first_readme() -> None:
    judge = inspect.signature(SimpleJudge.judge, eval_str=True)
    assert str(judge) == "(self, response: str, is_benign: bool) -> bool"
    assert str(inspect.signature(BlackBoxLLM.generate, eval_str=True)) == (
        "(self, prompt: str) -> str"
    )
    assert isinstance(SimpleJudge(), BooleanJudge)
    assert isinstance(Echo(), BlackBoxLLM)


def test_importing_the_seams_needs_no_torch() -> None:
    code = "import sys; from tsgb import SimpleJudge, BlackBoxLLM; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"


def test_tsgb_has_no_other_names() -> None:
    import tsgb

    with pytest.raises(AttributeError, match="no attribute 'Nothing'"):
        tsgb.Nothing  # noqa: B018

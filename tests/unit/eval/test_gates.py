"""Gates hold the end of an interval, and are refused in one line where they are none."""

import pytest

from tests.fakes.stored_evaluation import store_evaluation
from tsgb.errors import UsageError
from tsgb.eval.gates import Gate, check_gates
from tsgb.eval.records import Summary, Unconverged


@pytest.fixture(scope="module")
def summary(tmp_path_factory: pytest.TempPathFactory) -> Summary:
    return store_evaluation(tmp_path_factory.mktemp("s") / "e")


def test_the_end_of_the_interval_counts(summary: Summary) -> None:
    row = next(
        r for r in summary.results if (r.guard, r.target, r.seed) == ("selfplay", "T_s", None)
    )
    rate = row.adaptive_asr
    assert rate is not None
    between = (rate.value + rate.high) / 2
    name = "selfplay.adaptive_asr[T_s]"
    texts = [f"{name}<={between}", f"{name} <= {rate.high}", f"{name}>={rate.low}", f"{name}>=0.9"]
    found = check_gates(summary, [Gate.parse(text) for text in texts])
    assert [one.passed for one in found] == [False, True, True, False]
    assert str(found[0]).startswith("failed: selfplay.adaptive_asr[T_s] <= 0.")
    assert "95 % interval" in str(found[0])


def test_without_names_every_guard_and_target_must_keep_it(summary: Summary) -> None:
    found = check_gates(summary, [Gate.parse("adaptive_asr<=1"), Gate.parse("fpr<=1")])
    assert {(o.guard, o.target) for o in found if o.gate.metric == "adaptive_asr"} == {
        (guard, target.name) for guard in ("frozen", "selfplay") for target in summary.targets
    }
    assert [(o.guard, o.target) for o in found if o.gate.metric == "fpr"] == [
        ("frozen", None),
        ("selfplay", None),
    ]
    assert all(one.passed for one in found)


def test_a_figure_that_was_not_measured_fails(summary: Summary) -> None:
    rows = [r.model_copy(update={"fpr": None}) for r in summary.results]
    [found] = check_gates(
        summary.model_copy(update={"results": rows}), [Gate.parse("selfplay.fpr<=1")]
    )
    assert not found.passed
    assert str(found) == "failed: selfplay.fpr <= 1: not measured"


def test_a_lower_bound_keeps_no_upper_bound(summary: Summary) -> None:
    """Attackers that did not converge: the true figure may be anything above."""
    row = next(r for r in summary.results if (r.guard, r.target) == ("selfplay", "T_s"))
    rate = row.adaptive_asr
    assert rate is not None
    bound = Unconverged(guard="selfplay", target="T_s", trained=rate, open=rate)
    found = summary.model_copy(update={"unconverged": [bound]})
    name = "selfplay.adaptive_asr"
    upper, lower, fixed, other = check_gates(
        found,
        [
            Gate.parse(f"{name}[T_s]<=1"),
            Gate.parse(f"{name}[T_s]>={rate.low}"),
            Gate.parse("selfplay.asr[T_s]<=1"),
            Gate.parse(f"{name}[B_mid]<=1"),
        ],
    )
    assert not upper.passed
    assert str(upper).endswith("a lower bound: attacker did not converge")
    assert lower.passed
    assert fixed.passed
    assert other.passed


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", "is no condition"),
        ("adaptive_asr<0.1", "is no condition"),
        ("speed<=0.1", "no figure 'speed': choose of adaptive_asr"),
        ("fpr<=ten", "'ten' is no number from 0 to 1"),
        ("fpr<=nan", "'nan' is no number from 0 to 1"),
        ("fpr<=10", "'10' is no number from 0 to 1"),
    ],
)
def test_what_is_no_gate_is_refused_in_one_line(text: str, told: str) -> None:
    with pytest.raises(UsageError) as caught:
        Gate.parse(text)
    assert told in str(caught.value)
    assert repr(text) in str(caught.value)


def test_names_that_the_evaluation_lacks(summary: Summary) -> None:
    with pytest.raises(UsageError, match="no guard 'mine': choose of none, frozen, selfplay"):
        check_gates(summary, [Gate.parse("mine.fpr<=0.1")])
    with pytest.raises(UsageError, match="no target 'GPT': choose of T_s"):
        check_gates(summary, [Gate.parse("asr[GPT]<=0.1")])

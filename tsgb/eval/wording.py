"""How figures and guards are written, in the report, the tables and the verdict alike."""

from __future__ import annotations

from collections.abc import Sequence

from tsgb.data.characters import visible
from tsgb.eval.bootstrap import Difference
from tsgb.eval.intervals import clopper_pearson_upper
from tsgb.eval.records import FailedClass, Rate, Unconverged, UnevenErrors, Unguarded

TITLES = {
    "none": "No guard",
    "tfidf": "TF-IDF",
    "untrained": "Untrained",
    "sft": "SFT only",
    "frozen": "Frozen attacker",
    "selfplay": "Self-play",
    "oracle": "Oracle",
    "no_pool": "Self-play, no pool",
    "no_twins": "Self-play, no twins",
    "no_replay": "Self-play, no replay",
    "no_novelty": "Self-play, no novelty",
    "reinit": "Self-play, new starts",
    "no_quota": "Self-play, no quota",
    "frozen_no_quota": "Frozen attacker, no quota",
    "exact_pg": "Self-play, exact gradient",
    "sampled_pg": "Self-play, sampled gradient",
}

METRICS = {
    "adaptive_asr": "adaptive ASR",
    "asr": "scripted ASR",
    "scripted_tpr": "held-out TPR",
    "auroc": "held-out AUROC",
    "fpr": "FPR",
    "fpr_hard": "hard-benign FPR",
    "fpr_twins": "twins FPR",
    "fnr": "FNR",
    "ece": "ECE",
}

MINUS = "\u2212"


def title(guard: str) -> str:
    """A guard's name for people; an unknown one keeps its own, with hidden characters shown."""
    return TITLES.get(guard) or visible(guard)


def percent(value: float) -> str:
    """Example: `"4.1 %"`; two digits below one percent, so that a bound is not rounded to zero."""
    digits = 2 if 0 < abs(100 * value) < 1 else 1
    return f"{100 * value:.{digits}f} %"


def signed_points(value: float) -> str:
    """A difference of rates in percentage points, without the word."""
    return f"{100 * value:+.1f}".replace("-", MINUS)


def signed_unit(value: float) -> str:
    """A difference of figures between 0 and 1 that are no shares, with three decimals."""
    return f"{value:+.3f}".replace("-", MINUS)


def points(value: Difference) -> str:
    """Example: `"+7.9 points, 95 % interval +4.6 to +11.2"`."""
    ends = f"{signed_points(value.low)} to {signed_points(value.high)}"
    return f"{signed_points(value.value)} points, 95 % interval {ends}"


def interval(rate: Rate) -> str:
    """Example: `"2.1 to 7.0 %"`."""
    return f"{percent(rate.low).removesuffix(' %')} to {percent(rate.high)}"


def zero_events(rate: Rate) -> str | None:
    """Example: `"0 / 768, upper bound 0.50 %"`; None unless no scored item had the event."""
    if rate.value > 0 or rate.n == 0:
        return None
    bound = max(rate.high, clopper_pearson_upper(0, rate.n))
    return f"0 / {rate.n}, upper bound {percent(bound)}"


def in_words(rate: Rate | None) -> str:
    """The figure and its interval, or "0 / n, upper bound", in one line; errors are told."""
    if rate is None:
        return "not measured"
    text = zero_events(rate) or f"{percent(rate.value)} ({interval(rate)})"
    return f"{text}, {rate.errors} errors" if rate.errors else text


def leaking(unguarded: Unguarded) -> str:
    """Example: `"3 of 48 leak"`."""
    of = 0 if unguarded.asr is None else unguarded.asr.n
    return f"{unguarded.leaks} of {of} leak"


def _is_left_alone(found: Unguarded) -> bool:
    """Whether nobody attacked the target, and nothing was asked of it beforehand."""
    return found.asr is None and found.min_leaks <= 1 and not found.min_asr


def no_protection(*unguarded: Unguarded) -> str | None:
    """The sentence that stands in place of a guard's figures on a target; None where there are any.

    Args:
        unguarded: Denominators of one target; those that are large enough are left out.

    Example: `"no protection measurable on T_s: 3 of 48 adaptive attempts (6.3 %) leak un-guarded,
    and a figure takes 30.0 % and 100 leaks of the target"`
    """
    small = [found for found in unguarded if not found.measurable and not _is_left_alone(found)]
    if not small:
        return None
    parts: list[str] = []
    for found in small:
        kind = "adaptive" if found.metric == "adaptive_asr" else "scripted"
        if found.asr is None:
            parts.append(f"none of 0 {kind} attempts")
        else:
            share = percent(found.asr.value)
            parts.append(f"{found.leaks} of {found.asr.n} {kind} attempts ({share})")
    first = small[0]
    needs = [percent(first.min_asr)] if first.min_asr else []
    if first.min_leaks == 1:
        needs.append("a leak of the same kind")
    elif first.min_leaks:
        needs.append(f"{first.min_leaks} leaks of the target")
    return (
        f"no protection measurable on {first.target}: {' and '.join(parts)} leak un-guarded, and a "
        f"figure takes {' and '.join(needs)}"
    )


def failed_class(failed: FailedClass) -> str:
    """Say how much is missing, and why.

    Example: `"200 of 402 items (49.8 %) have no outcome: harmful prompts to Bot. Most common: HTTP
    500 (20 items), not asked (180 items)"`
    """
    text = (
        f"{failed.errors} of {failed.total} items ({percent(failed.errors / failed.total)}) have "
        f"no outcome: {failed.what}"
    )
    reasons = ", ".join(f"{reason} ({num} items)" for reason, num in failed.common.items())
    return f"{text}. Most common: {reasons}" if reasons else text


def too_many_failed(invalid: Sequence[FailedClass]) -> str:
    """Return what makes an evaluation invalid, in a sentence without its end."""
    worst = max(invalid, key=lambda failed: failed.errors / failed.total)
    others = len(invalid) - 1
    more = f", and too many of {others} other class{'' if others == 1 else 'es'}" if others else ""
    return f"{worst.errors} of {worst.total} {worst.what} have no outcome{more}"


def uneven_errors(found: UnevenErrors) -> str:
    """Say on which prompts a target failed.

    Example: `"errors of Bot do not fall on both classes alike: 9 of 600 harmful prompts and 0 of
    600 benign ones have no outcome"`
    """
    return (
        f"errors of {found.target} do not fall on both classes alike: {found.harmful_errors} of "
        f"{found.harmful_total} harmful prompts and {found.benign_errors} of {found.benign_total} "
        "benign ones have no outcome"
    )


def invalid_evaluation(invalid: Sequence[FailedClass], report: str) -> str:
    """Return the line with which a command ends whose evaluation is not valid."""
    classes = "; ".join(map(failed_class, invalid))
    return (
        f"not valid: {classes}. Mend what failed, and give the same command again: it asks only "
        f"what failed or was not asked. Report with bounds: {report}"
    )


AS_JUDGED = "as judged"
"""Note of a figure that rests on a judge who may err, and is not corrected for that."""
UNCONVERGED = "attacker did not converge"


def not_converged(found: Sequence[Unconverged]) -> str:
    """The sentence on attackers on one target who could have got through more often.

    Example: `"attacker did not converge on T_s: fresh attackers get through Self-play in 1.6 % of
    their attempts and scripted attacks in 53.8 %"`
    """
    told: list[str] = []
    for one in found:
        trained, other = percent(one.trained.value), percent(one.open.value)
        through = "no guard" if one.guard == "none" else title(one.guard)
        more = "scripted attacks in" if one.behind is None else f"through {title(one.behind)} in"
        of = " of their attempts" if not told else ""
        told.append(f"{through} in {trained}{of} and {more} {other}")
    return f"{UNCONVERGED} on {found[0].target}: fresh attackers get through {', '.join(told)}"

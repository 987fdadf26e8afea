"""What may happen to a call of the client, and what each thing is raised as.

The faults are those of a service that fails, is late or is odd, not of one that lies: an answer
that denies in the service's own words what has just been done deceives everybody.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from hypothesis import strategies as st

from tests.fakes.vast.faults import PRESETS
from tests.fakes.vast_bench import KEY, SECRET, Fault
from tsgb.errors import (
    ProviderAmbiguous,
    ProviderAuthError,
    ProviderError,
    ProviderGone,
    ProviderNoCredit,
    ProviderRateLimited,
    ProviderRefused,
    ProviderSearchQuota,
    ProviderUnreachable,
)

UNUSABLE = ("internal", "bad_gateway", "unavailable", "gateway_timeout", "not_json", "empty")
UNUSABLE += ("odd_list", "instances_null")
KINDS: Mapping[str, type[ProviderError]] = {
    **dict.fromkeys(UNUSABLE, ProviderUnreachable),
    **dict.fromkeys(("close", "hang", "late", "truncate", "cut"), ProviderUnreachable),
    **dict.fromkeys(("auth_error", "auth_error_401", "forbidden"), ProviderAuthError),
    **dict.fromkeys(
        ("too_frequent_text", "too_frequent_detail", "too_frequent_retry_after"),
        ProviderRateLimited,
    ),
    **dict.fromkeys(("insufficient_credit", "spend_rate_limit"), ProviderNoCredit),
    **dict.fromkeys(
        ("no_such_ask", "no_such_ask_400", "no_such_ask_404", "resources_unavailable"),
        ProviderRefused,
    ),
    **dict.fromkeys(
        ("invalid_price", "success_false", "message_only", "deprecated", "no_such_instance"),
        ProviderRefused,
    ),
    "search_quota": ProviderSearchQuota,
}
"""What each fault is raised as, unless the call is in one of the next two."""
KINDS_OF_CREATE: Mapping[str, type[ProviderError]] = {
    **dict.fromkeys((*UNUSABLE, "close", "hang", "late", "truncate"), ProviderAmbiguous),
    **dict.fromkeys(("no_such_ask", "no_such_ask_400", "no_such_ask_404"), ProviderGone),
    "resources_unavailable": ProviderAmbiguous,  # it says that the change is queued
}
ACTS = {"answer", "close", "hang", "late", "truncate", "patch", "partial", "duplicate"}
ACTS |= {"cut", "churn"}
OF_AN_INSTANCE = ("show", "label", "stop", "change_bid", "destroy", "logs")
LIES = {
    "show": {"no_such_instance", "instances_null"},
    **{call: {"no_such_instance"} for call in OF_AN_INSTANCE[1:]},
}
ODD: Mapping[str, tuple[dict[str, Any], ...]] = {
    "account": ({"credit": None}, {"credit": "NaN"}, {"id": "x"}),
    "search": ({"offers": None}, {"offers": {}}, {"success": False}),
    "create": ({"new_contract": None}, {"new_contract": "x"}, {"success": None}),
    "instances": (
        {"success": False},
        {"instances": None},
        {"instances": {}},
        {"instances": []},
        {"instances": [], "instances_found": 0, "next_token": None},
        {"instances": [{"label": "x"}], "instances_found": 1},
        {"instances_found": 99},
        {"total_instances": 99},
        {"next_token": None},
        {"next_token": "25"},
    ),
    "show": ({"instances": {}}, {"instances": []}, {"instances": {"id": 1}}, {"success": False}),
    "logs": ({"result_url": None}, {"result_url": "ftp://x/y"}, {"result_url": "http://[/"}),
    **dict.fromkeys(("label", "stop", "change_bid", "destroy"), ({"success": None},)),
}
"""What a patched answer says instead."""
PAGES = (
    {"status": 200, "body": '{"success": true, "new_contr'},
    {"status": 200, "body": "[" * 100_000},
    {"status": 404, "body": "<html>not found</html>", "content_type": "text/html"},
    {"status": 404, "body": {"detail": "Not Found"}},
    {"status": 408, "body": ""},
    {"status": 429, "body": "", "headers": {"Retry-After": "1e300"}},
    {"status": 400, "body": {"error": KEY, "msg": f"Bearer {KEY}"}},
    {"status": 401, "body": f"Bearer {KEY}"},
)
"""Answers of whoever else may stand on the way; some repeat what they were sent."""
ECHO = {"status": 400, "body": {"error": SECRET, "msg": f"{KEY} sent {SECRET}"}}


def faults_of(call: str) -> st.SearchStrategy[Fault | None]:
    """None every second time."""
    times = st.sampled_from([1, 2, None])
    skip = st.sampled_from([0, 0, 1])
    honest = sorted(PRESETS.keys() - LIES.get(call, set()))
    undone = sorted({*UNUSABLE, "resources_unavailable"}) if call == "create" else honest
    pages = [*PAGES, ECHO] if call == "create" else PAGES
    some = st.sampled_from
    kinds: list[st.SearchStrategy[Any]] = [
        _fault("answer", preset=some(honest), times=times, skip=skip),
        _fault("answer", preset=some(undone), times=times, when=st.just("after")),
        some(pages).map(lambda page: {"act": "answer", "times": None, **page}),
        _fault("close", when=some(["before", "after"]), times=times, skip=skip),
        _fault("hang", when=some(["before", "after"]), times=times),
        _fault("late", seconds=some([1, 30, 90, 3000]), times=times),
        _fault("truncate", times=times, skip=skip),
        _fault("patch", set=some(ODD[call]), times=times, skip=skip),
        _fault("cut"),
    ]
    if call == "instances":
        kinds += [_fault("partial", rows=some([0, 1, 24]), times=times), _fault("churn")]
    elif call not in {"account", "search", "show"}:
        kinds.append(_fault("duplicate"))
    return st.booleans().flatmap(lambda is_hit: st.one_of(kinds) if is_hit else st.none())


def _fault(act: str, **more: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return st.fixed_dictionaries({"act": st.just(act), **more})


OPTIONS = st.fixed_dictionaries(
    {},
    optional={
        "list_lag_seconds": st.sampled_from([0, 5, 60, 600]),
        "by_id_lag_seconds": st.sampled_from([0, 5, 60]),
        "ghost_seconds": st.sampled_from([0, 30, 3600]),
        "status_lag_seconds": st.sampled_from([0, 60]),
        "paging": st.sampled_from(["keyset", "offset"]),
        "gone": st.sampled_from(["null", "404"]),
        "low_bid": st.sampled_from(["contract", "success_false", "refused"]),
        "refusal": st.sampled_from([0, 0.5]),
        "rate_limits": st.booleans(),
        "rate_limit_shape": st.sampled_from(["text", "detail", "retry_after"]),
        "searches_per_day": st.sampled_from([None, 1]),
        "auth_error_status": st.sampled_from([401, 404]),
        "ask_single_use": st.booleans(),
        "auto_resume": st.booleans(),
        "log_misses": st.sampled_from([0, 3]),
    },
)


def expected(call: str, fault: Fault) -> type[ProviderError] | None:
    """What a call must raise if this was the last that it met; None if that depends."""
    name = fault.get("preset", fault["act"])
    kinds = {**KINDS, **KINDS_OF_CREATE} if call == "create" else KINDS
    return kinds.get(name)

"""Endpoints as black boxes of an evaluation, through real sockets: each prompt is asked once."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr

from tests.fakes.contexts import worker_context
from tests.fakes.endpoint_server import ANTHROPIC, OPENAI, EndpointServer, Fault, good_body, serving
from tests.fakes.miniature import SHORT_EVALUATION, TRUST, miniature_config, world
from tests.fakes.runs import save_run
from tests.fakes.sentinels import leaking_files, leaks, new_key
from tsgb.checkpoint.run import RunStore, open_run
from tsgb.errors import UsageError
from tsgb.eval.additions import Additions
from tsgb.eval.merge import Part, merge
from tsgb.eval.records import Summary
from tsgb.eval.request import read_request, write_request
from tsgb.eval.streams import estimate_costs
from tsgb.targets.endpoint import EndpointSpec
from tsgb.worker.evaluate import evaluate
from tsgb.worker.report import command

CONFIG = miniature_config({"evaluation": SHORT_EVALUATION})
REFUSED = Fault(
    body={"choices": [{"message": {"content": None, "refusal": "No."}, "finish_reason": "stop"}]}
)


def spec(server: EndpointServer, kind: str, name: str, **values: Any) -> EndpointSpec:
    values = {"kind": kind, "model": name, "url": server.url_of(kind), **values}
    return EndpointSpec.model_validate({"name": name, "key_variable": "BOX_KEY", **values})


def asked(tmp_path: Path, key: str, additions: Additions) -> RunStore:
    """The run, with every cell made anew."""
    ref = save_run(tmp_path / "r1", CONFIG, tmp_path / "cache")
    context = worker_context(tmp_path / "cache", trust=TRUST)
    context = replace(context, keys=lambda _: SecretStr(key))
    run = open_run(str(tmp_path / "r1"))
    shutil.rmtree(tmp_path / "r1" / "reports", ignore_errors=True)
    targets = ["T_s", *additions.target_names]
    write_request(
        run,
        "e1",
        {"selfplay": ref},
        targets,
        endpoints=additions.endpoints,
        adaptive=additions.adaptive,
    )
    evaluate(context, run.run_url, "e1", 0, 1, added=additions)
    return run


def measured(tmp_path: Path, key: str, **added: Any) -> Summary:
    return merged(asked(tmp_path, key, Additions(**added)))


def merged(run: RunStore) -> Summary:
    request = read_request(run, "e1")
    env = Additions.of(CONFIG, request).extend(world())
    return merge([Part(run, CONFIG)], env, "e1", command([CONFIG], env, [request]))


def test_endpoints_are_black_boxes_that_are_asked_each_prompt_once(tmp_path: Path) -> None:
    key = new_key()
    refusing = Fault(body=good_body(ANTHROPIC, "", "refusal"))
    with (
        serving(otherwise=REFUSED, key=key) as first,
        serving(otherwise=refusing, key=key) as second,
    ):
        endpoints = [spec(first, OPENAI, "big"), spec(second, ANTHROPIC, "wise", max_tokens=9)]
        expected = estimate_costs(world(), [CONFIG], endpoints)
        summary = measured(tmp_path, key, endpoints=endpoints)
        assert [one.requests for one in expected] == [first.requests, second.requests] == [72, 72]
        again = measured(tmp_path, key, endpoints=endpoints)
        assert (first.requests, second.requests) == (72, 72)
    assert again.results == summary.results
    shown = {target.name: target for target in summary.targets}
    assert [*shown] == ["T_s", "big", "wise"]
    assert shown["big"].arch == f"openai big at 127.0.0.1:{first.port}"
    rows = {row.target: row for row in summary.results if row.guard == "none" and row.seed is None}
    for name in ("big", "wise"):
        assert rows[name].asr_no_guard is not None
        assert (rows[name].asr_no_guard.n, rows[name].asr_no_guard.errors) == (36, 0)
        assert rows[name].adaptive_asr is None
    assert rows["T_s"].adaptive_asr is not None
    assert "adaptive attacks on selfplay before big, wise" in summary.provenance.not_measured
    told = summary.provenance.command
    assert "--target T_s --target big --target wise --targets-file FILE" in told
    assert "# reported here: FILE declares big, wise" in told
    assert not leaking_files(tmp_path)
    assert not leaks(summary.model_dump_json())


def test_a_limit_on_requests_holds_over_both_and_over_a_second_try(tmp_path: Path) -> None:
    with serving() as server:
        endpoints = [spec(server, OPENAI, "big"), spec(server, OPENAI, "small")]
        few = Additions(endpoints=endpoints, max_requests=90)
        for _ in range(2):
            asked(tmp_path, new_key(), few)
            assert server.requests == 90
        asked(tmp_path, new_key(), replace(few, max_requests=200))
        assert server.requests == 144


def test_fresh_attackers_send_as_many_attacks_as_were_asked_for(tmp_path: Path) -> None:
    with serving(otherwise=REFUSED) as first, serving() as second:
        endpoints = [spec(first, OPENAI, "big"), spec(second, ANTHROPIC, "wise")]
        estimated = estimate_costs(world(), [CONFIG], endpoints, adaptive=50, num_guards=3)
        assert [(one.requests, one.attacks) for one in estimated] == [(120, 48)] * 2
        summary = measured(tmp_path, new_key(), endpoints=endpoints, adaptive=50)
        sent = [first.requests - 72, second.requests - 72]
        assert all(0 < num <= 48 for num in sent)
        again = measured(tmp_path, new_key(), endpoints=endpoints, adaptive=50)
        assert [first.requests - 72, second.requests - 72] == sent, "all was answered before"
    assert again.results == summary.results
    assert not summary.invalid
    rows = {(row.guard, row.target): row for row in summary.results if row.seed is None}
    for guard, name in (("none", "big"), ("none", "wise"), ("selfplay", "wise")):
        row = rows[guard, name]
        trained = row.adaptive_trained or row.adaptive_asr
        assert trained is not None
        assert (trained.n, trained.errors) == (12, 0)
    shown = {target.name: target.attacks for target in summary.targets}
    assert shown == {"T_s": None, "big": 50, "wise": 50}
    gaps = summary.provenance.not_measured
    assert not any("adaptive attacks on selfplay" in gap for gap in gaps)
    assert any("more than 50 attacks to each of big, wise" in gap for gap in gaps)
    assert "--adaptive 50" in summary.provenance.command
    page = (tmp_path / "r1" / "reports" / "e1" / "report.html").read_text()
    assert "50 attacks sent at most" in page


def test_a_limit_that_is_reached_by_attacks_is_told_and_a_higher_one_asks_the_rest(
    tmp_path: Path,
) -> None:
    with serving() as server:
        box = Additions(endpoints=[spec(server, OPENAI, "big")], adaptive=108, max_requests=82)
        summary = merged(asked(tmp_path, new_key(), box))
        assert server.requests == 82
        failed = {found.what: found.common for found in summary.invalid}
        assert failed
        assert all("attacks on" in what and "big" in what for what in failed)
        assert all(common.keys() == {"budget"} for common in failed.values())
        page = (tmp_path / "r1" / "reports" / "e1" / "report.html").read_text()
        assert "<strong>Not valid</strong>" in page
        more = merged(asked(tmp_path, new_key(), replace(box, max_requests=500)))
        once = server.requests
        assert not more.invalid
    with serving() as server:
        undisturbed = replace(box, endpoints=[spec(server, OPENAI, "big")], max_requests=None)
        assert merged(asked(tmp_path, new_key(), undisturbed)).results == more.results
        assert server.requests == once


def test_an_endpoint_is_attacked_only_after_its_fixed_prompts_gave_a_valid_result(
    tmp_path: Path,
) -> None:
    with serving() as server:
        box = Additions(endpoints=[spec(server, OPENAI, "big")], adaptive=30, max_requests=70)
        run = asked(tmp_path, new_key(), box)
        assert server.requests == 70
        assert "big.0.json" not in run.list("reports/e1/cells")
        summary = merged(run)
        assert [found.what for found in summary.invalid] == ["benign prompts to big"]
    context, other = worker_context(tmp_path / "cache", trust=TRUST), replace(box, adaptive=9)
    with pytest.raises(UsageError, match="--adaptive 9: the request of evaluation e1 has 30"):
        evaluate(context, run.run_url, "e1", 0, 1, added=other)

"""Judges of the user's in a whole evaluation, an endpoint that judges among them."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from pydantic import SecretStr

from tests.fakes.chat_model import save_chat_model
from tests.fakes.contexts import worker_context
from tests.fakes.endpoint_server import OPENAI, Fault, good_body, serving, status
from tests.fakes.miniature import SHORT_EVALUATION, TRUST, miniature_config, world
from tests.fakes.runs import save_run
from tests.fakes.sentinels import leaking_files, new_key
from tests.fakes.text_classifier import save_classifier
from tsgb.checkpoint.run import open_run
from tsgb.errors import StoreError, UsageError
from tsgb.eval.additions import Additions
from tsgb.eval.human_labels import HumanLabel, HumanLabels
from tsgb.eval.merge import Part, merge
from tsgb.eval.records import Item, ItemSource, Summary
from tsgb.eval.request import read_request, write_request
from tsgb.targets.endpoint import EndpointSpec
from tsgb.worker.evaluate import evaluate
from tsgb.worker.own_judge import secret_key
from tsgb.worker.report import command

CONFIG = miniature_config({"evaluation": SHORT_EVALUATION})


def half(prompt: str, response: str) -> float:
    """A callable: violations are the answers to prompts of even length."""
    return 0.75 if len(prompt) % 2 else 0.25


def judged(
    tmp_path: Path, added: Additions, key: str = "", labels: HumanLabels | None = None
) -> tuple[Summary, list[Item]]:
    ref = save_run(tmp_path / "r1", CONFIG, tmp_path / "cache")
    context = worker_context(tmp_path / "cache", trust=TRUST)
    context = replace(context, keys=lambda _: SecretStr(key))
    run = open_run(str(tmp_path / "r1"))
    shutil.rmtree(tmp_path / "r1" / "reports", ignore_errors=True)
    write_request(
        run,
        "e1",
        {"selfplay": ref},
        ["T_s", *added.target_names],
        endpoints=added.endpoints,
        judge=added.judge,
        human_labels=None if labels is None else labels.document(),
    )
    evaluate(context, run.run_url, "e1", 0, 1, added=added)
    request = read_request(run, "e1")
    env = Additions.of(CONFIG, request).extend(world())
    summary = merge([Part(run, CONFIG)], env, "e1", command([CONFIG], env, [request]))
    text = (tmp_path / "r1" / "reports" / "e1" / "results.jsonl").read_text()
    return summary, [Item.model_validate_json(line) for line in text.splitlines()]


def scripted(items: list[Item]) -> list[Item]:
    return [i for i in items if i.source is ItemSource.SCRIPTED and i.target == "T_s"]


def test_an_endpoint_judges_what_figures_count_and_nothing_else(tmp_path: Path) -> None:
    key = new_key()
    grade = Fault(body=good_body(OPENAI, '{"grade": "harmful"}'))
    with serving(otherwise=grade, key=key) as server:
        form = f"openai:wise@{server.openai}"
        summary, items = judged(tmp_path, Additions(judge=form), key)
        first = server.requests
        assert all(body["response_format"]["type"] == "json_schema" for body in server.bodies)
        again, _ = judged(tmp_path, Additions(judge=form), key)
        assert server.requests == first
    assert again.results == summary.results
    assert all(item.violated for item in scripted(items))
    adaptive = [i for i in items if i.source is ItemSource.ADAPTIVE and i.answer]
    assert adaptive
    assert all(item.violated for item in adaptive)
    questions = {(i.item_id, i.answer) for i in [*scripted(items), *adaptive]}
    assert first <= len(questions) + 14 * 2  # canaries, and texts that were asked about twice
    judge = summary.judge
    assert judge is not None
    assert (judge.name, judge.exact, judge.weak) == (form, False, False)
    assert judge.prompt_sha256 is not None
    assert judge.canaries is not None
    # It calls all harmful, so no plant changes a grade, and one bare text is wrong.
    assert (judge.canaries.num, judge.canaries.flips, judge.canaries.wrong) == (12, 0, 1)
    assert f"--judge {form}" in summary.provenance.command
    assert not leaking_files(tmp_path)


def test_one_without_schemas_is_asked_in_words(tmp_path: Path) -> None:
    with serving(otherwise=Fault(body=good_body(OPENAI, "GRADE: safe"))) as server:
        plan_free = server.next
        refused: list[str] = []

        def answer(prompt: str) -> Fault:
            found = plan_free(prompt)
            if "response_format" in server.bodies[-1]:
                refused.append(prompt)
                return status(400)
            return found

        server.next = answer  # type: ignore[method-assign]
        summary, items = judged(tmp_path, Additions(judge=f"openai:plain@{server.openai}"), "k")
    assert len(refused) <= 3  # a probe each for the answers, the canaries and the attacks
    assert not any(item.violated for item in scripted(items))
    assert not any(item.error for item in scripted(items))
    assert summary.judge is not None


def test_a_judge_that_fails_makes_the_evaluation_invalid(tmp_path: Path) -> None:
    with serving(otherwise=status(400)) as server:
        summary, items = judged(tmp_path, Additions(judge=f"openai:gone@{server.openai}"), "k")
    assert summary.invalid
    assert {item.error for item in scripted(items) if item.error} <= {
        "judge: http_400",
        "judge: not asked",
    }


def test_a_callable_and_phrases_and_a_classifier_judge(tmp_path: Path) -> None:
    summary, items = judged(tmp_path, Additions(judge=f"{__name__}:half"))
    assert {item.probability for item in scripted(items)} == {0.25, 0.75}
    assert all(i.violated == (i.probability == 0.75) for i in scripted(items))
    assert summary.judge is not None
    assert (summary.judge.refusals, summary.judge.name) == ("phrases", f"{__name__}:half")
    summary, _ = judged(tmp_path, Additions(judge="refusal-phrases"))
    assert summary.judge is not None
    assert summary.judge.weak
    model = save_classifier(tmp_path / "m", ["o1", "o2"], ("fine", "unsafe"), longest=64)
    summary, items = judged(tmp_path, Additions(judge=f"classifier:{model}"))
    assert summary.judge is not None
    assert summary.judge.name == "classifier:m"
    assert all(item.probability is not None for item in scripted(items))


def test_labels_of_people_are_found_again_by_their_answers(tmp_path: Path) -> None:
    added = Additions(judge=f"{__name__}:half")
    _, items = judged(tmp_path, added)
    labels = HumanLabels(
        sha256="ab" * 32,
        labels=[
            HumanLabel(item_id=i.item_id, target="T_s", answer=i.answer, violates=bool(i.violated))
            for i in {(i.item_id, i.answer): i for i in scripted(items)}.values()
        ],
    )
    summary, again = judged(tmp_path, added, labels=labels)
    assert all(item.human == item.violated for item in scripted(again))
    assert summary.judge is not None
    assert summary.judge.human is not None
    assert (summary.judge.human.unused, summary.judge.human.kappa) == (0, 1.0)
    assert {rate.target for rate in summary.judge.corrected} == {"T_s"}
    document = json.loads((tmp_path / "r1" / "reports" / "e1" / "summary.json").read_text())
    assert document["judge"]["corrected"]


def test_a_model_does_not_judge_itself() -> None:
    spec = EndpointSpec(name="bot", kind="openai", model="m", url="https://host/v1")
    with pytest.raises(UsageError, match="is the model of the target 'bot'"):
        Additions(endpoints=[spec], judge="openai:m@https://host/v1")
    Additions(endpoints=[spec], judge="openai:n@https://host/v1")
    with pytest.raises(UsageError, match="is the model of the target 'Both'"):
        Additions(target_class=["mine:Both"], judge="mine:Both")
    with pytest.raises(UsageError, match="--judge and --judge-class name two judges"):
        Additions(judge="exact", judge_class="mine:J")


def test_the_key_of_nonces_is_made_once_and_only_the_user_reads_it(tmp_path: Path) -> None:
    path = tmp_path / "new" / "judge.key"
    key = secret_key(path)
    assert len(key) == 32
    assert secret_key(path) == key
    assert path.stat().st_mode & 0o777 == 0o600
    assert [file.name for file in path.parent.iterdir()] == ["judge.key"]
    path.write_bytes(b"short")
    with pytest.raises(StoreError, match="is no key of a judge: delete it"):
        secret_key(path)


def test_a_chat_model_on_this_machine_is_asked_in_the_words_of_a_judge(tmp_path: Path) -> None:
    """Its weights are random, so it gives no grade: nothing is taken for one, and all is told."""
    directory = save_chat_model(tmp_path / "chat", words=200, window=8192)
    summary, items = judged(tmp_path, Additions(judge=f"local:{directory}"))
    assert summary.judge is not None
    assert (summary.judge.name, summary.judge.weak) == ("local:chat", False)
    assert summary.judge.prompt_sha256 is not None
    assert summary.judge.version.startswith(f"{summary.judge.prompt_sha256[:12]}-")
    asked = [i for i in items if i.source is ItemSource.SCRIPTED and i.target is not None]
    assert {i.error for i in asked} <= {
        None,
        "judge: no grade",
        "judge: its reply was cut",
        "judge: a grade that is not on the menu",
    }
    assert any(i.error for i in asked)
    assert summary.invalid

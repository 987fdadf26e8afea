"""Guards of the user's stand in the table beside those of the run, at the same budget."""

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from tests.fakes.chat_model import save_chat_model
from tests.fakes.contexts import worker_context
from tests.fakes.miniature import SHORT_EVALUATION, TRUST, miniature_config, world
from tests.fakes.runs import save_run
from tests.fakes.text_classifier import save_classifier
from tsgb.checkpoint.run import open_run
from tsgb.errors import UsageError
from tsgb.eval.additions import Additions
from tsgb.eval.merge import Part, merge
from tsgb.eval.records import Summary
from tsgb.eval.request import read_request, write_request
from tsgb.guards.choice import checked_guards
from tsgb.worker.evaluate import evaluate
from tsgb.worker.report import command

CONFIG = miniature_config({"evaluation": SHORT_EVALUATION})


class Moderation(BaseHTTPRequestHandler):
    """Scores a text by its length; counts what it was asked."""

    asked = 0
    fails = False

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        type(self).asked += len(body["input"])
        results = [
            {"flagged": False, "category_scores": {"a": len(text) / 500}} for text in body["input"]
        ]
        content = json.dumps({"results": results}).encode()
        self.send_response(403 if self.fails else 200)
        self.send_header("content-length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_: object) -> None: ...


@pytest.fixture
def moderation() -> Iterator[str]:
    Moderation.asked, Moderation.fails = 0, False
    server = ThreadingHTTPServer(("127.0.0.1", 0), Moderation)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}/v1/moderations"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def measured(tmp_path: Path, *guards: str) -> Summary:
    ref = save_run(tmp_path / "r1", CONFIG, tmp_path / "cache")
    context = worker_context(tmp_path / "cache", trust=TRUST)
    checked = checked_guards(guards, context.hub, tmp_path / "cache" / "models")
    run = open_run(str(tmp_path / "r1"))
    write_request(run, "e1", {"selfplay": ref}, ["T_s"], own_guards=checked)
    evaluate(context, run.run_url, "e1", 0, 1, added=Additions(guards=checked))
    env = Additions.of(CONFIG, read_request(run, "e1")).extend(world())
    told = command([CONFIG], env, [read_request(run, "e1")])
    assert all(f"--guard {text}" in told for text in checked)
    return merge([Part(run, CONFIG)], env, "e1", told)


def test_each_kind_stands_in_the_table(tmp_path: Path, moderation: str) -> None:
    words = [word for word in world().tokenizer().words if word[0] in "oa"]
    (tmp_path / "words.txt").write_text("\n".join(words[:4]))
    classifier = save_classifier(tmp_path / "clf", words, longest=64)
    chat = save_chat_model(tmp_path / "chat", words=2000)
    summary = measured(
        tmp_path,
        "always-block",
        f"words=keywords:{tmp_path / 'words.txt'}",
        f"classifier:{classifier}",
        f"llama=llama-guard:{chat}",
        f"service=moderation:{moderation}",
    )
    own = ["always-block", "words", "clf", "llama", "service"]
    built_in = ["none", "tfidf", "untrained", "selfplay"]
    assert summary.guards == [*built_in, *own, "oracle"]
    rows = {row.guard: row for row in summary.results if row.seed is None}
    blocks = rows["always-block"]
    assert blocks.fpr is not None
    assert blocks.asr is not None
    assert blocks.fpr.value == 1.0
    assert blocks.asr.value == 0.0
    assert rows["words"].fpr is not None
    assert 0 < rows["words"].fpr.value < 1
    thresholds = {t.guard: t for t in summary.thresholds}
    for name in ("clf", "llama", "service"):
        assert thresholds[name].alpha == CONFIG.calibration.fpr
        assert rows[name].auroc is not None
    for name in ("always-block", "words"):
        assert thresholds[name].alpha is None
        assert thresholds[name].value == 0.5
    attacked = {name for name in own if rows[name].adaptive_asr is not None}
    assert attacked == {"always-block", "words", "clf", "llama"}, "no service is attacked"
    assert any("adaptive attacks on service" in x for x in summary.provenance.not_measured)
    assert Moderation.asked > 0


def test_a_service_that_refuses_ends_it_in_one_line(tmp_path: Path, moderation: str) -> None:
    Moderation.fails = True
    with pytest.raises(UsageError, match=r"guard 'service' scored 0 of \d+ benign prompts only"):
        measured(tmp_path, f"service=moderation:{moderation}")

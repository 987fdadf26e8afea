"""A pretrained classifier scores as transformers' own pipeline does, and reads long texts whole."""

import math
from pathlib import Path

import numpy as np
import pytest
import transformers

from tests.fakes.text_classifier import save_classifier
from tsgb.errors import ConfigError
from tsgb.models.sequence_classifier import SequenceClassifier

WORDS = ("alpha", "beta", "gamma", "delta", "epsilon")
LONGEST = 16


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_classifier(tmp_path_factory.mktemp("model") / "m", WORDS, longest=LONGEST)


def test_scores_are_the_log_odds_of_the_pipeline(directory: Path) -> None:
    texts = ["alpha", "beta gamma", "delta delta epsilon", "unknown words", ""]
    pipeline = transformers.pipeline("text-classification", model=str(directory), top_k=None)
    found = SequenceClassifier(directory).score(texts)
    for text, score in zip(texts, found, strict=True):
        labels = {one["label"]: one["score"] for one in pipeline([text])[0]}
        assert score == pytest.approx(math.log(labels["INJECTION"] / labels["BENIGN"]), abs=1e-4)
    assert len(set(found.round(4))) == len(texts)


def test_a_score_does_not_depend_on_the_other_texts(directory: Path) -> None:
    classifier = SequenceClassifier(directory)
    texts = [" ".join(WORDS[: 1 + i % 5]) for i in range(11)]
    alone = np.concatenate([classifier.score([text]) for text in texts])
    np.testing.assert_allclose(classifier.score(texts), alone, atol=1e-5)
    assert classifier.score([]).shape == (0,)


def test_a_long_text_is_as_harmful_as_its_worst_part(directory: Path) -> None:
    classifier = SequenceClassifier(directory)
    part = max(WORDS, key=lambda word: classifier.score([f"{word} {word}"])[0])
    other = min(WORDS, key=lambda word: classifier.score([f"{word} {word}"])[0])
    long = " ".join([other] * 60 + [part] * 14)
    assert classifier.score([long])[0] >= classifier.score([" ".join([part] * 14)])[0] - 1e-5
    assert classifier.score([long])[0] > classifier.score([" ".join([other] * 60)])[0]


def test_a_text_cannot_write_the_tokens_that_frame_it(directory: Path) -> None:
    classifier = SequenceClassifier(directory)
    tokenizer = transformers.AutoTokenizer.from_pretrained(directory)
    windows, _ = classifier._windows(["alpha [SEP] beta"])
    assert windows[0].count(tokenizer.sep_token_id) == 1


@pytest.mark.parametrize("labels", [("OTHER", "UNSAFE", "MAYBE"), ("x", "y")])
def test_which_label_is_harmful(tmp_path: Path, labels: tuple[str, ...]) -> None:
    model = save_classifier(tmp_path / "m", WORDS, labels)
    if "UNSAFE" in labels:
        assert SequenceClassifier(model).label == "UNSAFE"
        assert SequenceClassifier(model, "maybe").label == "MAYBE"
    else:
        with pytest.raises(ConfigError, match="name one of x, y"):
            SequenceClassifier(model)
        assert SequenceClassifier(model, "y").label == "y"


def test_weights_that_are_no_safetensors_are_never_read(tmp_path: Path) -> None:
    model = save_classifier(tmp_path / "m", WORDS)
    (model / "model.safetensors").unlink()
    (model / "pytorch_model.bin").write_bytes(b"pickle")
    with pytest.raises(ConfigError, match="as safetensors") as caught:
        SequenceClassifier(model)
    assert "\n" not in str(caught.value)

"""Pictures that stand outside the report's page."""

from __future__ import annotations

import base64
from xml.etree import ElementTree

from tsgb.eval.figures import data_url, learning
from tsgb.eval.records import Curve


def test_a_picture_outside_a_page_has_its_own_colours_and_size() -> None:
    points = [{"step": 1.0, "asr": 0.9}, {"step": 2.0, "asr": 0.4, "fpr": 0.02}]
    picture = learning([Curve(seed=0, arm="selfplay", points=points)])
    assert picture is not None
    url = data_url(picture)
    head, _, content = url.partition(",")
    assert head == "data:image/svg+xml;base64"
    svg = ElementTree.fromstring(base64.b64decode(content))  # noqa: S314 - our own
    assert svg.tag == "{http://www.w3.org/2000/svg}svg"
    assert float(svg.attrib["width"]) > float(svg.attrib["height"]) > 100
    assert b"var(" not in base64.b64decode(content)
    assert {"ASR", "FPR", "Self-play"} <= set(svg.itertext())


def test_before_the_first_round_there_is_no_learning_curve() -> None:
    assert learning([Curve(seed=0, arm="sft", points=[{"step": 1.0, "loss": 2.0}])]) is None

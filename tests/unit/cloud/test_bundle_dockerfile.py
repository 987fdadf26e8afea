"""The worker's image, read where there is no Docker to build it."""

from __future__ import annotations

import re
from importlib.metadata import requires
from pathlib import Path

from packaging.requirements import Requirement

from tsgb.setting_groups import IMAGE

ROOT = Path(__file__).parents[3]
TEXT = (ROOT / "infra" / "Dockerfile").read_text()
KNOWN = {"FROM", "ARG", "RUN", "COPY", "ENV"}


def instructions() -> list[tuple[str, str]]:
    """Without comments, continued lines joined, as Docker reads them."""
    lines = [line for line in TEXT.splitlines() if not line.startswith("#")]
    joined = re.sub(r"\\\n", "", "\n".join(lines))
    return [
        (word, rest) for word, _, rest in (s.partition(" ") for s in joined.split("\n")) if word
    ]


def test_it_is_made_of_known_instructions() -> None:
    assert {word for word, _ in instructions()} <= KNOWN
    assert instructions()[0] == ("FROM", IMAGE), "what a host may have in its cache already"


def test_the_default_image_has_the_torch_that_is_required() -> None:
    """The version, and the CUDA that the wheel of the index is built for."""
    found = re.fullmatch(r"pytorch/pytorch:([\d.]+)-cuda([\d.]+)-cudnn\d+-runtime", IMAGE)
    assert found is not None
    [torch] = [one for one in requires("tsgb") or [] if re.match(r"torch\b", one)]
    assert found[1] in Requirement(torch).specifier
    [toolkit] = [one for one in requires("torch") or [] if one.startswith("cuda-toolkit")]
    [pinned] = Requirement(toolkit).specifier
    assert pinned.version.startswith(f"{found[2]}.")


def test_there_is_no_key_no_mount_no_prompt_and_no_host_in_it() -> None:
    assert not re.search(r"https?://|index-url|PASS|SECRET|API_KEY|TOKEN|--mount|VOLUME", TEXT)
    for word, rest in instructions():
        if word == "RUN" and "apt-get install" in rest:
            assert "--yes" in rest
            assert "DEBIAN_FRONTEND=noninteractive" in rest
        if word == "RUN" and "pip install" in rest:
            assert "--no-input" in rest


def test_it_copies_what_is_there_and_no_code() -> None:
    [copied] = [rest.split()[0] for word, rest in instructions() if word == "COPY"]
    assert copied == "infra/requirements/base.txt"
    assert (ROOT / copied).is_file()


def test_it_installs_what_a_start_would_look_for() -> None:
    """With hashes, and beside the torch that the image has."""
    [step] = [rest for word, rest in instructions() if word == "RUN" and "pip install" in rest]
    assert "--require-hashes --only-binary :all: --no-deps -r /tmp/tsgb/requirements.txt" in step

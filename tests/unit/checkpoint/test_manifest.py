"""The manifest is canonical, guards itself, and its format is pinned."""

from __future__ import annotations

import json
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tsgb.checkpoint.manifest import (
    FileRecord,
    Manifest,
    canonical_json,
    installed_versions,
    sha256_hex,
)

MANIFEST = Manifest(
    run_id="r1",
    step=1200,
    episode=48000,
    attempt=3,
    writer="0001b2c4",
    parent=None,
    files={"guard.safetensors": FileRecord.of(b"abc")},
    versions={"python": "3.11.2"},
    config_sha256="0" * 64,
    created_at=datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC),
)


def test_format_is_pinned() -> None:
    # Changing this text breaks every stored checkpoint: it takes a new schema_version.
    assert MANIFEST.to_bytes().decode() == (
        '{"attempt":3,"config_sha256":"' + "0" * 64 + '","created_at":"2026-01-02T03:04:05Z",'
        '"episode":48000,"files":{"guard.safetensors":{"sha256":'
        '"ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad","size":3}},'
        '"parent":null,"run_id":"r1","schema_version":1,"self_sha256":'
        '"9751dda78219a4dcd9884697de086aef7f5767083748f6790982f48b44aede3e","step":1200,'
        '"versions":{"python":"3.11.2"},"writer":"0001b2c4"}\n'
    )


def test_round_trip() -> None:
    assert Manifest.from_bytes(MANIFEST.to_bytes()) == MANIFEST


@given(st.data())
def test_no_changed_byte_passes(data: st.DataObject) -> None:
    good = MANIFEST.to_bytes()
    position = data.draw(st.integers(0, len(good) - 1))
    byte = data.draw(st.integers(0, 255).filter(lambda value: value != good[position]))
    with pytest.raises(ValueError, match=r"\w"):
        Manifest.from_bytes(good[:position] + bytes([byte]) + good[position + 1 :])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"schema_version": 3}, "schema_version 3 is not 1 or 2"),
        ({"step": -1}, "field step"),
        ({"surprise": 1}, "field surprise"),
    ],
    ids=["another version", "a bad value", "an unknown field"],
)
def test_another_format_is_named(change: dict[str, object], message: str) -> None:
    content = {**MANIFEST.model_dump(mode="json"), **change}
    data = canonical_json({**content, "self_sha256": sha256_hex(canonical_json(content))})
    with pytest.raises(ValueError, match=message):
        Manifest.from_bytes(data)


@pytest.mark.parametrize("data", [b"", b"[]", b"\xff\xfe", b"{}", b'"x"'])
def test_no_manifest_at_all(data: bytes) -> None:
    with pytest.raises(ValueError, match=r"it is|its own"):
        Manifest.from_bytes(data)


@given(st.dictionaries(st.text(), st.integers() | st.text() | st.none()))
def test_canonical_json_is_one_form(value: dict[str, object]) -> None:
    try:
        text = canonical_json(value)
    except UnicodeEncodeError:
        return  # lone surrogates have no UTF-8 form
    assert json.loads(text) == value
    assert canonical_json(dict(reversed(value.items()))) == text


def test_versions_name_what_the_numbers_depend_on() -> None:
    assert {"python", "torch", "numpy", "safetensors"} <= installed_versions().keys()

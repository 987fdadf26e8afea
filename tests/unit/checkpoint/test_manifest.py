"""The manifest is canonical, guards itself, its format is pinned, and a key can sign it."""

from __future__ import annotations

import json
import traceback
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import SecretStr

from tests.fakes.checkpoints import CONFIG, content, publish
from tests.fakes.filesystems import MemoryFiles
from tests.fakes.sentinels import sentinel
from tsgb.checkpoint.documents import canonical_json
from tsgb.checkpoint.manifest import MANIFEST as NAME
from tsgb.checkpoint.manifest import (
    FileRecord,
    Manifest,
    PartRecord,
    Untrusted,
    installed_versions,
    sha256_hex,
)
from tsgb.checkpoint.resolve import load
from tsgb.checkpoint.run import RunStore, open_run
from tsgb.checkpoint.store import CheckpointReader, CheckpointStore
from tsgb.errors import CheckpointError

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
        ({"schema_version": 4}, "schema_version 4 is not 1, 2 or 3"),
        ({"schema_version": 3}, "field parts: they belong to no file, or to another"),
        ({"step": -1}, "field step"),
        ({"surprise": 1}, "field surprise"),
    ],
    ids=["another version", "parts' version without parts", "a bad value", "an unknown field"],
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


SECRET = sentinel("manifest")
KEY = SecretStr(SECRET)
OTHER = SecretStr(sentinel("another"))


def signing(files: MemoryFiles, key: SecretStr | None, url: str = "") -> CheckpointStore:
    run = RunStore(files, url or files.url, manifest_key=key, sleep=lambda _seconds: None)
    return CheckpointStore(run)


def writer(files: MemoryFiles, key: SecretStr | None) -> CheckpointStore:
    store = signing(files, key)
    store.claim()
    return store


def reasons(files: MemoryFiles, key: SecretStr | None, url: str = "") -> str:
    """Why nothing can be used."""
    with pytest.raises(CheckpointError, match="none of the") as caught:
        signing(files, key, url).newest_valid(lambda _line: None)
    text = str(caught.value)
    assert "\n" not in text
    assert "damaged" not in text
    assert SECRET not in "".join(traceback.format_exception(caught.value))
    return text


class TestFormat:
    def test_it_is_pinned(self) -> None:
        # Changing this breaks every signed checkpoint: it takes a new schema_version.
        signed = json.loads(MANIFEST.to_bytes(SecretStr("correct-horse-battery-staple")))
        assert signed["schema_version"] == 2
        assert signed["hmac_sha256"] == (
            "1a89fc225c2db19d6d1fd9571ab4c166de90970e2c48cbdf1a4085b45f475241"
        )

    def test_without_a_key_the_bytes_are_those_of_version_1(self) -> None:
        assert json.loads(MANIFEST.to_bytes())["schema_version"] == 1

    def test_it_reads_with_its_key_and_without_one(self) -> None:
        data = MANIFEST.to_bytes(KEY)
        for key in (KEY, None):
            read = Manifest.from_bytes(data, key)
            assert read.model_copy(update={"schema_version": 1}) == MANIFEST

    @given(st.data())
    def test_no_changed_byte_passes(self, data: st.DataObject) -> None:
        good = MANIFEST.to_bytes(KEY)
        position = data.draw(st.integers(0, len(good) - 1))
        byte = data.draw(st.integers(0, 255).filter(lambda value: value != good[position]))
        with pytest.raises(ValueError, match=r"\w"):
            Manifest.from_bytes(good[:position] + bytes([byte]) + good[position + 1 :], KEY)

    @pytest.mark.parametrize("signature", [None, 7, "", "0" * 64, "ä"])
    def test_what_is_no_signature_of_ours(self, signature: object) -> None:
        body = {**json.loads(MANIFEST.to_bytes(KEY)), "hmac_sha256": signature}
        del body["self_sha256"]
        data = canonical_json({**body, "self_sha256": sha256_hex(canonical_json(body))})
        with pytest.raises(Untrusted):
            Manifest.from_bytes(data, KEY)


class TestRun:
    def test_signed_checkpoints_are_published_read_and_pruned(self) -> None:
        files = MemoryFiles()
        store = writer(files, KEY)
        publish(store, 1, 2, 3)
        assert len(store.prune(keep=2)) == 1
        for key in (KEY, None):
            found = signing(files, key).newest_valid(pytest.fail)
            assert found is not None
            assert found[1] == content(3)

    def test_unsigned(self) -> None:
        files = MemoryFiles()
        publish(writer(files, None), 1)
        text = reasons(files, KEY)
        assert "unsigned" in text
        assert "unset the key" in text

    def test_signed_with_another_key(self) -> None:
        files = MemoryFiles()
        publish(writer(files, OTHER), 1)
        text = reasons(files, KEY)
        assert "signed with another key" in text
        assert "set TSGB_MANIFEST_KEY to the key that wrote it" in text

    def test_signed_for_another_run(self) -> None:
        files = MemoryFiles("memory://fake/run-1")
        publish(writer(files, KEY), 1)
        assert "signed for run 'run-1'" in reasons(files, KEY, "memory://fake/run-2")
        assert signing(files, None, "memory://fake/run-2").newest() is not None

    def test_an_older_signed_one_is_used(self) -> None:
        files = MemoryFiles()
        publish(writer(files, KEY), 1)
        publish(writer(files, None), 2)
        skipped: list[str] = []
        found = signing(files, KEY).newest_valid(skipped.append)
        assert found is not None
        assert found[1] == content(1)
        assert len(skipped) == 1
        assert "unsigned" in skipped[0]

    def test_a_hostile_server_cannot_swap_weights(self) -> None:
        """It knows every format and every hash, and lacks the key."""
        files = MemoryFiles()
        ref = writer(files, KEY).publish(1, 10, content(1), CONFIG)
        directory = f"checkpoints/{ref.name}"
        poisoned = b"other weights"
        files.write(f"{directory}/guard.safetensors", poisoned)
        body = json.loads(files.read(f"{directory}/{NAME}"))
        del body["self_sha256"]
        body["files"]["guard.safetensors"] = {
            "size": len(poisoned),
            "sha256": sha256_hex(poisoned),
        }
        stripped = {k: v for k, v in body.items() if k != "hmac_sha256"} | {"schema_version": 1}
        for forged in (body, stripped):
            data = canonical_json({**forged, "self_sha256": sha256_hex(canonical_json(forged))})
            files.write(f"{directory}/{NAME}", data)
            assert signing(files, None).newest_valid(pytest.fail) is not None
            assert "signed" in reasons(files, KEY)


def test_a_checkpoint_named_by_hand_must_be_signed_too(tmp_path: Path) -> None:
    url = f"memory://signature-{tmp_path.name}/r1"
    store = CheckpointStore(open_run(url, manifest_key=KEY))
    store.claim()
    ref = store.publish(1, 10, content(1), CONFIG)
    for address in (ref.url, url, f"{url}/latest"):
        assert load(address, manifest_key=KEY)[0] == ref
        with pytest.raises(CheckpointError, match="another key") as caught:
            load(address, manifest_key=OTHER)
        assert "\n" not in str(caught.value)
    with pytest.raises(CheckpointError, match="another key"):
        CheckpointReader(open_run(url, manifest_key=OTHER)).read(ref)


def test_the_key_is_in_no_repr() -> None:
    run = RunStore(MemoryFiles(), "memory://x/r1", manifest_key=KEY)
    assert SECRET not in repr(run) + repr(vars(run)) + repr(CheckpointReader(run))


PART = PartRecord(**FileRecord.of(b"start").model_dump(), writer="a0003-0001b2c4")
WITH_PARTS = MANIFEST.model_copy(update={"parts": {"guard.safetensors": {"sft": PART}}})


class TestParts:
    def test_the_format_is_pinned(self) -> None:
        content = json.loads(WITH_PARTS.to_bytes())
        # Changing this breaks every checkpoint with parts: it takes a new schema_version.
        assert content["schema_version"] == 3
        assert content["parts"] == {
            "guard.safetensors": {
                "sft": {
                    "sha256": sha256_hex(b"start"),
                    "size": 5,
                    "writer": "a0003-0001b2c4",
                }
            }
        }
        assert PART.path == f"parts/{sha256_hex(b'start')}-a0003-0001b2c4"

    @pytest.mark.parametrize("key", [None, KEY], ids=["unsigned", "signed"])
    def test_round_trip(self, key: SecretStr | None) -> None:
        read = Manifest.from_bytes(WITH_PARTS.to_bytes(key), key)
        assert read.model_copy(update={"schema_version": 1}) == WITH_PARTS
        assert read.part_records == {"guard.safetensors/sft": PART}

    def test_the_signature_covers_them(self) -> None:
        with pytest.raises(Untrusted, match="unsigned"):
            Manifest.from_bytes(WITH_PARTS.to_bytes(), KEY)
        content = json.loads(WITH_PARTS.to_bytes(KEY))
        content["parts"]["guard.safetensors"]["sft"]["sha256"] = sha256_hex(b"poison")
        del content["self_sha256"]
        with pytest.raises(Untrusted, match="signed with another key"):
            Manifest.from_bytes(self.sealed(content), KEY)

    @pytest.mark.parametrize(
        ("parts", "field"),
        [
            ({"guard.safetensors": {"../x": PART.model_dump()}}, "parts"),
            ({"guard.safetensors": {"sft": {**PART.model_dump(), "writer": "../../x"}}}, "writer"),
            ({"guard.safetensors": {"sft": {**PART.model_dump(), "sha256": "../"}}}, "sha256"),
            ({"guard.safetensors": {"sft": {**PART.model_dump(), "size": -1}}}, "size"),
            ({"guard.safetensors": {"sft": {**PART.model_dump(), "path": "x"}}}, "path"),
            ({"guard.safetensors": [PART.model_dump()]}, "parts"),
            ({"attacker.safetensors": {"sft": PART.model_dump()}}, "belong to no file"),
            ("x", "parts"),
        ],
        ids=["name", "writer", "hash", "size", "field", "list", "file", "text"],
    )
    def test_what_another_host_wrote_is_refused(self, parts: object, field: str) -> None:
        content = json.loads(WITH_PARTS.to_bytes())
        del content["self_sha256"]
        with pytest.raises(ValueError, match=field):
            Manifest.from_bytes(self.sealed({**content, "parts": parts}))

    def test_an_older_format_has_none(self) -> None:
        content = json.loads(WITH_PARTS.to_bytes())
        del content["self_sha256"]
        with pytest.raises(ValueError, match="another schema_version"):
            Manifest.from_bytes(self.sealed({**content, "schema_version": 1}))

    def sealed(self, content: dict[str, Any]) -> bytes:
        return canonical_json({**content, "self_sha256": sha256_hex(canonical_json(content))})

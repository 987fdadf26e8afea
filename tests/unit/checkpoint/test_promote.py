"""What a rented machine saved is taken over only as far as it can be a checkpoint of its run."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import SecretStr
from safetensors.numpy import load, save

from tests.fakes.filesystems import CopyingServer, FaultyFiles, MemoryFiles
from tsgb.checkpoint.manifest import MANIFEST, FileRecord, Manifest, sha256_hex
from tsgb.checkpoint.promote import MAX_CANDIDATES, Expected, hand_out, promote
from tsgb.checkpoint.reader import CheckpointReader
from tsgb.checkpoint.run import RunStore, open_run
from tsgb.checkpoint.store import CheckpointStore
from tsgb.errors import StoreUnreachable

CONFIG = "c" * 64
KEY = SecretStr("a key of the control plane")
EXPECTED = Expected(
    attempt=2, config_sha256=CONFIG, last_step=100, max_bytes=30_000, adapter=("full", 16)
)
ABOUT = {"base_sha256": "b" * 64, "adapter": "full", "rank": 16}


def tensors(about: Mapping[str, Any] | None = None, /, **arrays: Any) -> bytes:
    named = {
        name.replace("_", "/"): np.asarray(value, dtype=np.float32)
        for name, value in arrays.items()
    }
    return save(named, {"tsgb": json.dumps(about or {})})


def moments(*names: str, **arrays: Any) -> bytes:
    """The state of an optimizer of weights by these names."""
    named = {f"{name}|exp_avg": np.asarray(v, dtype=np.float32) for name, v in arrays.items()}
    groups = [{"params": list(names), "lr": 0.1}]
    return save(named, {"tsgb": json.dumps({"param_groups": groups, "scalars": {}})})


def state(step: int, **more: Any) -> bytes:
    content = {"state": {"step": step, "mu": 0.5}, "python_rng": {}, "torch_rng": {}, **more}
    return json.dumps(content).encode()


def files(value: float = 1.0, step: int = 30) -> dict[str, bytes]:
    """Two parts have the same content, as the weights before and after an empty warm-up."""
    return {
        "attacker.safetensors": tensors(ABOUT, current_weight=[value]),
        "attacker.safetensors/sft": tensors(weight=[0.25]),
        "attacker.safetensors/warm": tensors(weight=[0.25]),
        "guard.safetensors": tensors(ABOUT, current_weight=[value, 2.0]),
        "guard.safetensors/round-1": tensors(weight=[0.5, 2.0]),
        "optim_attacker.safetensors": moments("weight"),
        "optim_guard.safetensors": moments("weight", weight=[value, value]),
        "trainer_state.json": state(step),
        "trainer_state.json/round-1": b'{"attacks":[],"name":"round-1"}',
    }


class Place:
    """A run and what a machine sees of it."""

    def __init__(self, server: CopyingServer | None = None) -> None:
        self.stored = MemoryFiles("memory://store/r1", server)
        self.outbox = MemoryFiles("memory://exchange/r1/0002-77/r1", server)
        self.run = RunStore(self.stored, self.stored.url, manifest_key=KEY)
        self.seen = RunStore(self.outbox, self.outbox.url)
        self.told: list[str] = []

    def machine(self, attempt: int = 2) -> CheckpointStore:
        store = CheckpointStore(self.seen)
        store.claim(attempt)
        return store

    def promote(self, expected: Expected = EXPECTED) -> int | None:
        """The step of what was taken over."""
        ref = promote(self.seen, self.run, expected, note=self.told.append)
        return None if ref is None else ref.step

    def newest(self) -> int | None:
        ref = CheckpointReader(self.run).newest()
        return None if ref is None else ref.step


@pytest.fixture
def place() -> Place:
    return Place()


def begun(place: Place) -> Place:
    """A run with one checkpoint, handed out to the machine of attempt 2."""
    store = CheckpointStore(place.run)
    store.claim(1)
    store.publish(10, 5, files(step=10), CONFIG)
    place.run.write_text("metrics.jsonl", '{"step": 10, "loss": 1.0}\n')
    assert hand_out(place.run, place.seen) is not None
    return place


def test_a_machine_goes_on_from_what_it_is_handed(place: Place) -> None:
    begun(place)
    reader = CheckpointReader(place.seen)
    ref = reader.newest()
    assert ref is not None
    assert (ref.step, ref.attempt) == (10, 1)
    assert reader.read(ref) == files(step=10)
    assert place.machine(2).newest() == ref
    assert all(b"hmac" not in data for data in place.outbox.files.values())


def test_attempts_that_saved_nothing_are_handed_out_too(place: Place) -> None:
    store = CheckpointStore(place.run)
    store.claim(1)
    store.publish(10, 5, files(step=10), CONFIG)
    CheckpointStore(place.run).claim(2)
    place.run.write_json("exits/0002.json", {"outcome": "interrupted"})
    assert hand_out(place.run, place.seen) is not None
    assert CheckpointStore(place.seen).claim(3) == 3
    assert {token.attempt for token in place.seen.fencing_tokens()} == {1, 2, 3}
    assert place.seen.read_json("exits/0002.json") == {"outcome": "interrupted"}


def test_what_it_saves_is_taken_over_signed_and_once(place: Place) -> None:
    begun(place)
    place.machine().publish(30, 9, files(3.0), CONFIG)
    assert place.promote() == 30
    reader = CheckpointReader(place.run)
    ref = reader.newest()
    assert ref is not None
    assert (ref.step, ref.episode, ref.attempt) == (30, 9, 2)
    assert reader.read(ref) == files(3.0)
    written = dict(place.stored.files)
    place.outbox.files.clear()  # whatever it does afterwards
    assert place.promote() is None
    assert place.newest() == 30
    assert {name for name in place.stored.files if name.startswith("checkpoints/")} == {
        name for name in written if name.startswith("checkpoints/")
    }


def test_a_machine_that_never_trained_leaves_no_trace(place: Place) -> None:
    begun(place)
    before = dict(place.stored.files)
    assert place.promote() is None
    assert place.stored.files == before


def test_a_later_attempt_has_gone_on(place: Place) -> None:
    begun(place)
    place.machine().publish(30, 9, files(3.0), CONFIG)
    CheckpointStore(place.run).claim(3)
    assert place.promote() is None


def test_a_machine_is_told_the_hash_of_what_it_goes_on_from(place: Place) -> None:
    begun(place)
    handed = hand_out(place.run, place.seen)
    assert handed is not None
    assert handed.kept == CheckpointReader(place.run).newest()
    manifest = place.outbox.files[f"checkpoints/{handed.seen.name}/{MANIFEST}"]
    assert handed.seen.sha256 == sha256_hex(manifest)


def test_what_nobody_can_go_on_from_is_left_alone(place: Place) -> None:
    """A later attempt begins where the one before it did; what it saves counts by itself."""
    begun(place)
    place.machine().publish(30, 9, files(3.0), CONFIG)
    assert place.promote() == 30
    place.outbox.files.clear()
    handed = hand_out(place.run, place.seen, doubted={2})
    assert handed is not None
    assert (handed.kept.step, handed.kept.attempt) == (10, 1)
    place.machine(3).publish(20, 7, files(2.0, 20), CONFIG)
    assert place.promote(replace(EXPECTED, attempt=3, doubted=frozenset({2}))) == 20
    ref = CheckpointReader(place.run).newest()
    assert ref is not None
    assert (ref.step, ref.attempt) == (20, 3)


def test_a_run_of_which_all_is_doubted_begins_again(place: Place) -> None:
    place.machine().publish(30, 9, files(3.0), CONFIG)
    place.seen.write_text("metrics.jsonl", '{"step": 30, "loss": 1.0}\n')
    assert place.promote() == 30
    place.outbox.files.clear()
    assert hand_out(place.run, place.seen, doubted={2}) is None
    assert CheckpointReader(place.seen).newest() is None
    place.machine(3).publish(0, 0, files(step=0), CONFIG)
    assert place.promote(replace(EXPECTED, attempt=3, doubted=frozenset({2}))) == 0
    assert place.newest() == 0


def test_a_machine_that_saves_often_leaves_the_checkpoint_before_it(place: Place) -> None:
    """Else one host could leave nothing to go back to."""
    begun(place)
    machine = place.machine()
    for step in (20, 30, 40, 50):
        machine.publish(step, 9, files(3.0, step), CONFIG)
        assert place.promote() == step
    place.outbox.files.clear()
    handed = hand_out(place.run, place.seen, doubted={2})
    assert handed is not None
    assert handed.kept.step == 10


def updated(value: float) -> float:
    """The only weight after one more update."""
    return float(np.float32(1.0 - np.float32(1.7) * np.float32(value) ** 2))


def trained(place: Place, attempt: int, updates: int, copy_every: int) -> None:
    """One machine that saves each second update, and the flow that takes over some of it."""
    place.outbox.files.clear()  # its predecessor's folder is gone
    hand_out(place.run, place.seen)
    machine = place.machine(attempt)
    found, step, value, num_saves = machine.newest_valid(pytest.fail), 0, 0.5, 0
    if found is None:
        machine.publish(0, 0, files(value, 0), CONFIG)
    else:
        step = found[0].step
        [value] = load(found[1]["attacker.safetensors"])["current/weight"].tolist()
    for _ in range(min(updates, LAST_STEP - step)):
        step, value = step + 1, updated(value)
        if step % 2 == 0:
            machine.publish(step, step, files(value, step), CONFIG)
            num_saves += 1
            if num_saves % copy_every == 0 or step == LAST_STEP:
                place.promote(replace(EXPECTED, attempt=attempt))


LAST_STEP = 10
SPOILS: Mapping[str, Callable[[bytes], bytes]] = {
    "copies": lambda data: data,
    "copies half": lambda data: data[: len(data) // 2],
    "copies another": lambda data: bytes(len(data)),
    "copies too much": lambda data: data + bytes(9_000),
}
"""What servers do that say that they have copied a file."""


def server_that(does: str) -> CopyingServer:
    made = CopyingServer()
    made.spoil = SPOILS[does]
    return made


@given(
    copy_every=st.integers(1, 6),
    lives=st.lists(st.integers(0, 9), max_size=4),
    server=st.sampled_from([None, *SPOILS]),
)
@settings(max_examples=16)
def test_however_often_is_copied_the_end_is_the_same(
    copy_every: int, lives: list[int], server: str | None
) -> None:
    """Machines vanish with their folders after so many updates."""
    place, value = Place(None if server is None else server_that(server)), 0.5
    for attempt, updates in enumerate([*lives, LAST_STEP], 1):
        trained(place, attempt, updates, copy_every)
    for _ in range(LAST_STEP):
        value = updated(value)
    reader = CheckpointReader(place.run)
    ref = reader.newest()
    assert ref is not None
    assert reader.read(ref) == files(value, LAST_STEP)


def sent(place: Place) -> tuple[list[str], list[str]]:
    """Files of checkpoints that were sent to the run and to the exchange."""
    files = [
        [path for path in one.writes if path.startswith(("checkpoints/", "parts/"))]
        for one in (place.stored, place.outbox)
    ]
    for one in (place.stored, place.outbox):
        one.writes.clear()
    return files[0], files[1]


def test_what_one_server_has_is_copied_there_and_read_once() -> None:
    server = server_that("copies")
    place = Place(server)
    store = CheckpointStore(place.run)
    store.claim(1)
    store.publish(10, 5, files(step=10), CONFIG)
    sent(place)
    handed = hand_out(place.run, place.seen)
    assert handed is not None
    assert sent(place) == ([], [f"checkpoints/{handed.seen.name}/{MANIFEST}"])
    assert CheckpointReader(place.seen).read(handed.seen) == files(step=10)
    saved = place.machine().publish(30, 9, files(3.0), CONFIG)
    place.outbox.writes.clear()
    assert place.promote() == 30
    ref = CheckpointReader(place.run).newest()
    assert ref is not None
    known = "optim_attacker.safetensors"  # as it was before, so that nobody had to read it
    assert sent(place)[0] == [f"checkpoints/{ref.name}/{name}" for name in (known, MANIFEST)]
    assert CheckpointReader(place.run).read(ref) == files(3.0)
    assert ref.name != saved.name
    assert len(server.copies) == 8 + 4, "parts that are there already are left where they are"


@pytest.mark.parametrize("does", SPOILS)
def test_what_an_earlier_machine_saw_is_copied_where_the_run_is_elsewhere(does: str) -> None:
    """An exchange with a server or an account of its own."""
    server = server_that(does)
    place = Place()
    place.outbox = MemoryFiles(place.outbox.url, server)
    place.seen = RunStore(place.outbox, place.outbox.url)
    machine = begun(place).machine()
    machine.publish(30, 9, files(3.0), CONFIG)
    assert place.promote() == 30
    later = MemoryFiles("memory://exchange/r1/0003-78/r1", server)
    handed = hand_out(place.run, RunStore(later, later.url), earlier=place.seen)
    assert handed is not None
    assert CheckpointReader(RunStore(later, later.url)).read(handed.seen) == files(3.0)
    sends = [path for path in later.writes if path.startswith(("checkpoints/", "parts/"))]
    assert len(sends) == (1 if does == "copies" else 9)


@pytest.mark.parametrize("does", [does for does in SPOILS if does != "copies"])
def test_a_server_is_not_believed_that_it_has_copied(does: str) -> None:
    place = begun(Place(server_that(does)))
    assert CheckpointReader(place.seen).newest_valid(pytest.fail) is not None
    place.machine().publish(30, 9, files(3.0), CONFIG)
    sent(place)
    assert place.promote() == 30
    assert len(sent(place)[0]) == 6, "they are sent as if it had refused"
    found = CheckpointReader(place.run).newest_valid(pytest.fail)
    assert found is not None
    assert found[1] == files(3.0)


def test_what_is_refused_leaves_nothing_of_what_was_copied() -> None:
    """The newest candidate has numbers that are not finite, the one before is taken."""
    place = begun(Place(server_that("copies")))
    machine = place.machine()
    machine.publish(20, 7, files(2.0, 20), CONFIG)
    machine.publish(30, 9, {**files(3.0), "guard.safetensors": tensors(ABOUT, w=np.inf)}, CONFIG)
    assert place.promote() == 20
    assert [path for path in place.stored.files if "step-00000030" in path] == []
    assert place.newest() == 20


def test_candidates_that_go_while_they_are_read_are_looked_for_again(place: Place) -> None:
    """A slow store, and an honest machine that deletes its older checkpoints meanwhile."""
    begun(place)
    machine = place.machine()
    machine.publish(20, 7, files(2.0, 20), CONFIG)
    slow = FaultyFiles(place.outbox)

    def before(operation: str, path: str) -> None:
        if operation == "read" and "step-00000020" in path and path.endswith(".safetensors"):
            slow.before = lambda _operation, _path: None
            machine.publish(30, 9, files(3.0), CONFIG)
            machine.prune(keep=1)

    slow.before = before
    seen = RunStore(slow, slow.url)
    ref = promote(seen, place.run, EXPECTED, note=place.told.append)
    assert ref is not None
    assert ref.step == 30
    assert len(place.told) == 1


def test_a_run_without_a_checkpoint(place: Place) -> None:
    assert hand_out(place.run, place.seen) is None
    place.machine().publish(0, 0, files(step=0), CONFIG)
    assert place.promote() == 0


def swapped(name: str, data: bytes) -> Callable[[Place], None]:
    """A sound manifest about a file that is none of a checkpoint."""

    def publish(place: Place) -> None:
        place.machine().publish(30, 9, {**files(3.0), name: data}, CONFIG)

    return publish


def manifested(**changes: Any) -> Callable[[Place], None]:
    """A manifest that says something else than what was saved."""

    def publish(place: Place) -> None:
        ref = place.machine().publish(30, 9, files(3.0), CONFIG)
        path = f"checkpoints/{ref.name}/{MANIFEST}"
        manifest = Manifest.from_bytes(place.outbox.files[path])
        place.outbox.files[path] = manifest.model_copy(update=changes).to_bytes()

    return publish


def raw(data: bytes) -> Callable[[Place], None]:
    """Bytes in the place of a manifest."""

    def publish(place: Place) -> None:
        ref = place.machine().publish(30, 9, files(3.0), CONFIG)
        place.outbox.files[f"checkpoints/{ref.name}/{MANIFEST}"] = data

    return publish


def out_of_the_directory() -> bytes:
    manifest = Manifest(
        run_id="r1",
        step=30,
        episode=9,
        attempt=2,
        writer="00012345",
        parent=None,
        files={"guard.safetensors": FileRecord.of(b"x")},
        versions={},
        config_sha256=CONFIG,
        created_at="2026-11-29T00:00:00Z",  # pyright: ignore[reportArgumentType]
    )
    return manifest.to_bytes().replace(b"guard.safetensors", b"../../../evilmod.py")


def header(about: object = None, **tensor: Any) -> bytes:
    described = {"dtype": "F32", "shape": [1], "data_offsets": [0, 4], **tensor}
    text = json.dumps({"w": described, "__metadata__": {"a": about or "b"}}).encode()
    return len(text).to_bytes(8, "little") + text + b"\0" * 4


HOSTILE: Mapping[str, Callable[[Place], None]] = {
    "no safetensors": swapped("guard.safetensors", b"{}"),
    "a header of 2**63 bytes": swapped("guard.safetensors", b"\xff" * 8),
    "a header that is deep": swapped(
        "guard.safetensors", (200_000).to_bytes(8, "little") + b"[" * 200_000
    ),
    "a shape that lies": swapped("guard.safetensors", header(shape=[10**9])),
    "a negative shape": swapped("guard.safetensors", header(shape=[-1, -1])),
    "offsets beyond the file": swapped("guard.safetensors", header(data_offsets=[4, 8])),
    "bytes behind the tensors": swapped("guard.safetensors", header() + b"more"),
    "a type that does not exist": swapped("guard.safetensors", header(dtype="PICKLE")),
    "not a number": swapped(
        "guard.safetensors", tensors(ABOUT, current_weight=[float("nan"), 2.0])
    ),
    "infinite": swapped("optim_guard.safetensors", moments("weight", weight=[float("inf"), 0])),
    "another shape": swapped("guard.safetensors", tensors(ABOUT, current_weight=[1.0, 2.0, 3.0])),
    "another tensor": swapped("guard.safetensors", tensors(ABOUT, current_weights=[1.0, 2.0])),
    "a state that is deep": swapped("trainer_state.json", b"[" * 200_000),
    "a state that is half": swapped("trainer_state.json", b"{"),
    "a state without a generator": swapped("trainer_state.json", b'{"state":{"step":30}}'),
    "the state of another step": swapped("trainer_state.json", state(31)),
    "a state with more": swapped("trainer_state.json", state(30, more=1)),
    "a state of lists": swapped("trainer_state.json", state(30, state=[])),
    "another base": swapped(
        "guard.safetensors", tensors({**ABOUT, "base_sha256": "d" * 64}, current_weight=[1.0, 2.0])
    ),
    "an optimizer of other weights": swapped("optim_guard.safetensors", moments("elsewhere")),
    "a file too many": swapped("zzz.json", b"{}"),
    "metadata that are none": swapped("guard.safetensors", header(about=5)),
    "a shape of huge numbers": swapped("guard.safetensors", header(shape=[10**299] * 2)),
    "a shape in a shape": swapped("guard.safetensors", header(shape=[[0], 10**18])),
    "a shape with a text": swapped("guard.safetensors", header(shape=["a", 10**9])),
    "a shape of a bool": swapped("guard.safetensors", header(shape=[True])),
    "a part that is none": swapped("guard.safetensors/round-2", b"import os"),
    "too large": swapped("optim_guard.safetensors", moments("weight", weight=np.zeros(19_000))),
    "another run": manifested(run_id="r2"),
    "another configuration": manifested(config_sha256="d" * 64),
    "no files": manifested(files={}, parts={}),
    "a name that leads out": raw(out_of_the_directory()),
    "half a manifest": raw(b"{"),
    "a deep manifest": raw(b"[" * 200_000),
    "a huge manifest": raw(b" " * (17 << 20)),
    "NUL": raw(b"\0" * 100),
}


@pytest.mark.parametrize("what", HOSTILE)
def test_what_cannot_be_a_checkpoint_is_refused_and_the_one_before_it_counts(
    place: Place, what: str
) -> None:
    begun(place)
    machine = place.machine()
    machine.publish(20, 7, files(2.0, 20), CONFIG)
    HOSTILE[what](place)
    assert place.promote() == 20
    assert place.newest() == 20
    assert len(place.told) == 1
    assert "is refused" in place.told[0]
    assert place.told[0].isprintable()
    assert len(place.told[0]) < 600
    assert all(name.isascii() and ".." not in name for name in place.stored.files)


def test_files_that_were_changed_after_the_manifest(place: Place) -> None:
    begun(place)
    ref = place.machine().publish(30, 9, files(3.0), CONFIG)
    place.outbox.files[f"checkpoints/{ref.name}/guard.safetensors"] = files(4.0)[
        "guard.safetensors"
    ]
    assert place.promote() is None
    assert place.newest() == 10


@pytest.mark.parametrize(("attempt", "step"), [(1, 30), (3, 30), (2, 101), (2, 10)])
def test_only_its_own_attempt_and_only_steps_of_the_training(
    place: Place, attempt: int, step: int
) -> None:
    begun(place)
    place.machine(2)
    machine = CheckpointStore(place.seen)
    if attempt >= 2:
        machine.claim(attempt)
        machine.publish(step, 9, files(3.0), CONFIG)
    assert place.promote() is None
    assert place.newest() == 10


def test_no_more_than_a_few_are_looked_at(place: Place) -> None:
    begun(place)
    place.machine()
    for number in range(10_000):
        name = f"checkpoints/step-{11 + number % 80:08d}-a0002-{number:08x}/{MANIFEST}"
        place.outbox.files[name] = b"{"
    assert place.promote() is None
    assert len(place.told) == MAX_CANDIDATES


STRAY = {
    "claims is a file": {"claims": b"x"},
    "checkpoints is a file": {"checkpoints": b"x"},
    "a checkpoint is a file": {"checkpoints/step-00000059-a0002-000fffff": b"x"},
    "a manifest is a directory": {"checkpoints/step-00000059-a0002-000fffff/manifest.json/x": b"x"},
    "an exit record is a directory": {"exits/0002.json/x": b"x"},
    "metrics are a directory": {"metrics.jsonl/x": b"x"},
}


@pytest.mark.parametrize("what", STRAY)
def test_a_place_of_another_kind_ends_nothing(tmp_path: Path, what: str) -> None:
    """A stranger may put a file where a directory is read, and the other way round."""
    run = open_run(str(tmp_path / "store" / "r1"))
    seen = open_run(str(tmp_path / "exchange" / "r1"))
    ours = CheckpointStore(run)
    ours.claim(1)
    ours.publish(10, 5, files(step=10), CONFIG)
    root = tmp_path / "exchange" / "r1"
    for name, data in STRAY[what].items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(data)
    if "claims" not in STRAY[what]:
        CheckpointStore(seen).run.write_json("claims/a0002-00000000", {})
    told: list[str] = []
    assert promote(seen, run, EXPECTED, note=told.append) is None
    newest = CheckpointReader(run).newest()
    assert newest is not None
    assert newest.step == 10


@pytest.mark.parametrize("writes", range(12))
def test_a_first_promotion_that_is_cut_off_is_made_again(place: Place, writes: int) -> None:
    """The run has no other checkpoint, and the machine's own is as it was."""
    place.machine().publish(30, 9, files(3.0), CONFIG)
    place.seen.write_text("metrics.jsonl", '{"step": 30, "loss": 1.0}\n')
    left = iter(range(writes))

    def before(operation: str, _path: str) -> None:
        if operation == "write" and next(left, None) is None:
            raise StoreUnreachable("the store is away")

    faulty = FaultyFiles(place.stored, before)
    cut = RunStore(faulty, faulty.url, manifest_key=KEY, sleep=lambda _: None)
    with suppress(StoreUnreachable):
        promote(place.seen, cut, EXPECTED, note=place.told.append)
    place.promote()
    assert place.newest() == 30
    assert CheckpointReader(place.run).newest_whole(lambda _: None)
    assert place.told == []


def test_what_is_cut_off_is_forgotten_where_the_machine_has_lost_it(place: Place) -> None:
    place.stored.files["checkpoints/step-00000030-a0002-00012345/guard.safetensors"] = b"half"
    place.run.write_text("metrics.jsonl", '{"step": 30}\n')
    assert place.promote() is None
    assert place.newest() is None
    assert hand_out(place.run, place.seen) is None


def test_metrics_are_figures_of_its_own_updates(place: Place) -> None:
    begun(place)
    place.machine().publish(30, 9, files(3.0), CONFIG)
    lines = [
        '{"step": 10, "loss": 99.0}',
        '{"step": 20, "loss": 0.5, "phase": "guard"}',
        '{"step": 21, "loss": NaN}',
        '{"step": 22, "note": "\\u001b[2J"}',
        '{"step": 22, "large": ' + "9" * 30 + "}",
        '{"step": 22, ' + ", ".join(f'"k{i}": 1' for i in range(65)) + "}",
        '{"step": 22, "long": "' + "x" * 3000 + '"}',
        '{"step": 23, "deep": [1]}',
        "{",
        '{"step": 30, "loss": 0.25}',
        '{"step": 31, "loss": 0.1}',
    ]
    place.seen.write_text("metrics.jsonl", "\n".join(lines))
    assert place.promote() == 30
    kept = place.run.read_text("metrics.jsonl").splitlines()
    assert [json.loads(line) for line in kept] == [
        {"step": 10, "loss": 1.0},
        {"step": 20, "loss": 0.5, "phase": "guard"},
        {"step": 30, "loss": 0.25},
    ]


def test_metrics_that_are_too_large_are_none(place: Place) -> None:
    begun(place)
    place.machine().publish(30, 9, files(3.0), CONFIG)
    place.seen.write_text("metrics.jsonl", "{}\n" * 300_000)
    assert place.promote() == 30
    assert place.run.read_text("metrics.jsonl") == '{"step": 10, "loss": 1.0}\n'


def test_an_exit_record_tells_figures_and_no_checkpoint(place: Place) -> None:
    begun(place)
    place.machine()
    told = {"outcome": "done", "useful_seconds": 7.5, "checkpoint": {"step": 90}, "step": 90}
    place.seen.write_json("exits/0002.json", {**told, "message": "\x1b[2J", "attempt": 2})
    assert place.promote() is None
    assert place.run.read_json("exits/0002.json") == {
        "attempt": 2,
        "outcome": "done",
        "step": 90,
        "useful_seconds": 7.5,
    }
    assert place.newest() == 10

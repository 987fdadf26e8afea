"""Damage is found by reading everything, and located where another copy tells."""

from __future__ import annotations

import dataclasses

import pytest

from tests.fakes.checkpoints import (
    CONFIG,
    NAMES,
    content,
    flip,
    open_store,
    parts_in,
    publish_with_parts,
    writer,
)
from tests.fakes.filesystems import FaultyFiles, MemoryFiles
from tsgb.checkpoint.inspect import CheckpointInfo, CheckpointState, Inspector
from tsgb.checkpoint.verify import FileProblem, verify


def no_file(_listed: CheckpointInfo, _name: str, _num_bytes: int) -> None:
    """Nobody watches."""


def inspector(files: MemoryFiles | FaultyFiles) -> Inspector:
    return Inspector(open_store(files).run)


class TestVerify:
    def problems(self, files: MemoryFiles) -> list[FileProblem]:
        found = list(verify(inspector(files).all(), no_file))
        return [problem for item in found for problem in item.problems]

    def damage(self, files: MemoryFiles, name: str, data: bytes, step: int = 2) -> None:
        [path] = [path for path in files.files if f"{step:08d}-" in path and name in path]
        files.files[path] = data

    @pytest.fixture
    def files(self) -> MemoryFiles:
        """Of two checkpoints; the attacker is the same in both, as in a phase of the guard."""
        files = MemoryFiles()
        store = writer(files)
        for step in (1, 2):
            mine = {**content(step), "attacker.safetensors": bytes(200_000)}
            store.publish(step, step, mine, CONFIG)
        return files

    def test_good_ones(self, files: MemoryFiles) -> None:
        seen: list[str] = []
        found = list(verify(inspector(files).all(), lambda _listed, name, _size: seen.append(name)))
        assert [(item.state, item.num_files) for item in found] == [(CheckpointState.OK, 5)] * 2
        assert sorted(seen) == sorted([*NAMES, *NAMES])

    @pytest.mark.parametrize("position", [0, 70_000, 199_999])
    def test_with_a_copy_the_wrong_bytes_are_known(self, files: MemoryFiles, position: int) -> None:
        self.damage(files, "/attacker", flip(bytes(200_000), position))
        [problem] = self.problems(files)
        assert problem.file == "attacker.safetensors"
        assert (problem.begin, problem.end) == (position, position + 1)
        assert problem.expected_sha256 != problem.found_sha256
        assert f"bytes {position} to {position + 1}; expected sha256" in str(problem)

    def test_without_a_copy_they_are_not(self, files: MemoryFiles) -> None:
        self.damage(files, "/guard", flip(content(2)["guard.safetensors"], 3))
        [problem] = self.problems(files)
        assert (problem.file, problem.begin, problem.end) == ("guard.safetensors", None, None)
        assert "sha256 differs" in problem.reason

    @pytest.mark.parametrize(("size", "begin", "end"), [(10, 10, 93), (0, 0, 93), (99, 93, 99)])
    def test_a_wrong_size(self, files: MemoryFiles, size: int, begin: int, end: int) -> None:
        good = content(2)["optim_guard.safetensors"]
        self.damage(files, "/optim_guard", (good + bytes(20))[:size])
        [problem] = self.problems(files)
        assert (problem.expected_size, problem.found_size) == (len(good), size)
        assert (problem.begin, problem.end) == (begin, end)

    def test_a_wrong_size_and_a_wrong_byte_before_it(self, files: MemoryFiles) -> None:
        self.damage(files, "/attacker", flip(bytes(100_000), 7))
        [problem] = self.problems(files)
        assert (problem.begin, problem.end) == (7, 200_000)

    def test_a_file_that_fills_the_memory_is_not_read(self, files: MemoryFiles) -> None:
        self.damage(files, "/optim_guard", bytes(17 << 20))
        [problem] = self.problems(files)
        assert (problem.reason, problem.found_size) == (
            "it is far larger than the 93 bytes that were written",
            None,
        )

    def test_a_missing_file(self, files: MemoryFiles) -> None:
        del files.files[next(path for path in files.files if path.endswith("/trainer_state.json"))]
        [problem] = self.problems(files)
        assert (problem.reason, problem.found_size) == ("it is missing", None)

    def test_a_damaged_manifest(self, files: MemoryFiles) -> None:
        self.damage(files, "/manifest", b"{}")
        [problem] = self.problems(files)
        assert problem.file == "manifest.json"
        assert problem.found_size == 2

    def test_what_is_unfinished_is_no_damage(self, files: MemoryFiles) -> None:
        del files.files[max(path for path in files.files if path.endswith("/manifest.json"))]
        found = list(verify(inspector(files).all(), no_file))
        assert [item.state for item in found] == [CheckpointState.UNFINISHED, CheckpointState.OK]
        assert self.problems(files) == []

    def test_what_a_worker_prunes_meanwhile_is_no_damage(self, files: MemoryFiles) -> None:
        listed = inspector(files).all()
        for path in list(files.files):
            if listed[1].checkpoint.name in path:
                del files.files[path]
        found = list(verify(listed, no_file))
        assert [item.state for item in found] == [CheckpointState.OK, CheckpointState.UNFINISHED]
        assert (found[1].problems, found[1].reason) == ((), "it was deleted meanwhile")

    def test_one_lie_of_the_wire_is_no_damage(self, files: MemoryFiles) -> None:
        class Lying(MemoryFiles):
            reads = 0

            def read(self, path: str, max_bytes: int | None = None) -> bytes:
                self.reads += 1
                data = files.read(path)
                return flip(data, 0) if self.reads % 2 else data

        run = open_store(Lying()).run
        lying = [dataclasses.replace(item, run=run) for item in inspector(files).all()]
        assert {item.state for item in verify(lying, no_file)} == {CheckpointState.OK}


class TestParts:
    """Content that several checkpoints refer to is read once, and damage to it told of each."""

    @pytest.fixture
    def files(self) -> MemoryFiles:
        files = MemoryFiles()
        publish_with_parts(writer(files), 1, 2)
        return files

    def test_good_ones(self, files: MemoryFiles) -> None:
        read: list[str] = []
        seen = FaultyFiles(files, lambda _operation, path: read.append(path))
        found = list(verify(inspector(seen).all(), no_file))
        assert [(item.state, item.num_files) for item in found] == [
            (CheckpointState.OK, 9),  # five files, a start and three rounds
            (CheckpointState.OK, 8),
        ]
        assert [item.listed.parts_size for item in found] == [7 + 3 * 20, 7 + 2 * 20]
        parts = [path for path in read if path.startswith("parts/")]
        assert len(parts) == len(set(parts)) == 4

    def test_damage_is_that_of_all_that_refer_to_it(self, files: MemoryFiles) -> None:
        path = next(path for path, data in parts_in(files).items() if data == b"a start")
        files.files[path] = flip(b"a start", 3)
        found = list(verify(inspector(files).all(), no_file))
        assert [item.state for item in found] == [CheckpointState.DAMAGED] * 2
        assert {problem.file for item in found for problem in item.problems} == {path}

    def test_another_processes_copy_tells_which_bytes_are_wrong(self, files: MemoryFiles) -> None:
        publish_with_parts(writer(files), 3)  # it read nothing, so it wrote copies of its own
        path = next(path for path, data in parts_in(files).items() if data == b"a start")
        files.files[path] = flip(b"a start", 3)
        problems = [p for item in verify(inspector(files).all(), no_file) for p in item.problems]
        assert {(problem.begin, problem.end) for problem in problems} == {(3, 4)}

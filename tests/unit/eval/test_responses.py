"""The response log: every text as it was, whatever happens to the processes that write."""

from __future__ import annotations

import json
import os
import resource
import signal
import stat
import subprocess
import sys
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.fakes.users import other_user
from tsgb.errors import StoreError, StoreFull
from tsgb.eval.responses import ResponseLog, key_of, log_path, questions
from tsgb.types import Message, Response

IDENTITY = {"name": "mine", "version": "1"}
KEY = key_of([{"role": "user", "content": "hello"}])
NASTY = [
    "",
    "\x00\x01\x1b[31m\x7f\x9b",
    "\ud800 alone, \udc80 too",
    "\ud83d\ude00",  # two halves, which are not the character that they spell
    "\U0001f600",
    "line\nbreak\r\n\u2028\u2029",
    "\u202eright to left\u202c",
    "<script>alert(1)</script>",
    '{"key":"00","error":null}\n',
    "x" * 2**20,
    "\ufffe\uffff\ufeff",
    "caf\u00e9 \u65e5\u672c",
]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "responses" / "mine.jsonl"


@pytest.fixture
def notes() -> list[str]:
    return []


@pytest.fixture
def opened(path: Path, notes: list[str]) -> Callable[[], ResponseLog]:
    return lambda: ResponseLog(path, "Mine", IDENTITY, note=notes.append)


def user(text: str) -> list[Message]:
    return [{"role": "user", "content": text}]


@pytest.mark.parametrize("text", NASTY, ids=range(len(NASTY)))
def test_a_text_is_read_back_as_it_was(text: str, opened: Callable[[], ResponseLog]) -> None:
    response = Response(
        text=text, finish_reason="length", refusal=True, thought=True, attempts=3, latency_seconds=1
    )
    with opened() as log:
        log.append(key_of(user(text)), response)
    with opened() as log:
        found = log.find(key_of(user(text)))
        assert found is not None
        assert (found.response, found.earlier) == (response, True)
        assert len(log) == 1


@settings(max_examples=60)
@given(st.lists(st.text(st.characters(codec=None)), max_size=6))  # surrogates too
def test_texts_of_any_code_points(
    tmp_path_factory: pytest.TempPathFactory, texts: list[str]
) -> None:
    path = tmp_path_factory.mktemp("log") / "log.jsonl"
    with ResponseLog(path, "x", {}) as log:
        for text in texts:
            log.append(key_of(user(text)), Response(text=text, error=text or None))
    assert path.read_bytes().isascii()
    assert path.read_bytes().count(b"\n") == len(texts) + 1
    with ResponseLog(path, "x", {}) as log:
        for text in texts:
            found = log.find(key_of(user(text)))
            assert found is not None
            assert (found.response.text, found.response.error) == (text, text or None)


@given(st.lists(st.text(st.characters(codec=None), max_size=3), max_size=3))
def test_unequal_chats_have_unequal_keys(texts: list[str]) -> None:
    chats = [user(text) for text in [*texts, "\ud83d\ude00", "\U0001f600", '", "']]
    system: Message = {"role": "system", "content": "a"}
    chats += [[*user("a"), *user("b")], user("a b"), [system]]
    distinct = {json.dumps(chat).encode() + repr(chat).encode(): chat for chat in chats}
    assert len({key_of(chat) for chat in distinct.values()}) == len(distinct)


def test_equal_chats_are_draws_of_their_own() -> None:
    keys = questions([user("a"), user("b"), user("a"), user("a")])
    assert len(set(keys)) == 4
    assert keys[:2] == [key_of(user("a")), key_of(user("b"))]
    assert keys[2:] == [key_of(user("a"), 1), key_of(user("a"), 2)]


def test_another_identity_has_another_file(tmp_path: Path) -> None:
    paths = {
        log_path(tmp_path, name, {"name": "mine", "version": version})
        for name in ("Mine", "../../etc/Mine")
        for version in ("1", "2")
    }
    assert len(paths) == 4
    assert {path.parent for path in paths} == {tmp_path}


def test_only_its_user_may_read_it(opened: Callable[[], ResponseLog], path: Path) -> None:
    with opened():
        pass
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    path.chmod(0o644)
    with opened():
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
    head = json.loads(path.read_text())
    assert head == {"log": 1, "target": "Mine", "identity": IDENTITY}


def test_an_error_is_kept_until_an_answer_comes_and_never_after(
    opened: Callable[[], ResponseLog],
) -> None:
    failed = Response(text="", finish_reason="error", error="HTTP 500", attempts=4)
    answered = Response(text="fine")

    def stored(log: ResponseLog) -> Response:
        found = log.find(KEY)
        assert found is not None
        return found.response

    with opened() as log:
        log.append(KEY, failed)
        assert stored(log) == failed
        log.append(KEY, answered)
        assert stored(log) == answered
        log.append(KEY, failed)
        assert stored(log) == answered
    with opened() as log:
        assert stored(log) == answered


def test_what_comes_after_the_opening_is_not_earlier(opened: Callable[[], ResponseLog]) -> None:
    with opened() as first, opened() as second:
        first.append(KEY, Response(text="", error="HTTP 500"))
        assert second.find(KEY) is None
        second.refresh()
        found = second.find(KEY)
        assert found is not None
        assert not found.earlier
    with opened() as third:
        found = third.find(KEY)
        assert found is not None
        assert found.earlier


def test_a_line_that_a_death_tore_is_dropped_wherever_it_was_torn(
    opened: Callable[[], ResponseLog], path: Path, notes: list[str]
) -> None:
    with opened() as log:
        log.append(KEY, Response(text="first"))
    whole = path.read_bytes()
    other = key_of(user("other"))
    with opened() as log:
        log.append(other, Response(text="second \U0001f600"))
    line = path.read_bytes()[len(whole) :]
    for cut in range(len(line)):
        path.write_bytes(whole + line[:cut])
        with opened() as log:
            assert log.find(other) is None
            log.append(other, Response(text="again"))
        assert path.read_bytes().startswith(whole)
        with opened() as log:
            assert [found.response.text for k in (KEY, other) if (found := log.find(k))] == [
                "first",
                "again",
            ]
    assert len(notes) == len(line) - 1
    assert notes[0] == f"{path}: dropped a torn last line of 1 bytes"


def test_lines_of_others_are_left_out_with_a_note(
    opened: Callable[[], ResponseLog], path: Path, notes: list[str]
) -> None:
    with opened() as log:
        log.append(KEY, Response(text="first"))
    good = path.read_bytes()
    other = key_of(user("other"))
    strange = [
        b"\x00\x00\x00",
        b"",
        b"{}",
        b'{"key":"zz',
        b'{"key":"' + b"g" * 64 + b'"}',
        b"\xff\xfe",
    ]
    unreadable = f'{{"key":"{other}","error":null,"text":5}}'.encode()
    path.write_bytes(good + b"".join(line + b"\n" for line in [*strange, unreadable]))
    with opened() as log:
        found = log.find(KEY)
        assert found is not None
        assert found.response.text == "first"
        assert log.find(other) is None
        log.append(other, Response(text="then"))
        found = log.find(other)
        assert found is not None
        assert found.response.text == "then"
    assert notes[0] == f"{path}: left out {len(strange)} lines that are no responses"
    assert "left out a line that is no response, at byte" in notes[1]
    assert len(notes) == 2


def test_fields_that_this_version_does_not_know_are_left_alone(
    opened: Callable[[], ResponseLog], path: Path
) -> None:
    with opened():
        pass
    with path.open("a") as file:
        file.write(f'{{"key":"{KEY}","error":null,"text":"x","price":0.5,"usage":{{"a":1}}}}\n')
    with opened() as log:
        found = log.find(KEY)
        assert found is not None
        assert found.response == Response(text="x")


def test_a_full_disk_loses_nothing_that_is_stored(
    opened: Callable[[], ResponseLog], path: Path
) -> None:
    """A limit on the size of files stands for a full disk: the write stops in the middle too."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    other = key_of(user("other"))
    try:
        with opened() as log:
            log.append(KEY, Response(text="first"))
            stored = path.read_bytes()
            resource.setrlimit(resource.RLIMIT_FSIZE, (len(stored) + 100, before[1]))
            with pytest.raises(StoreFull, match=r"cannot grow .*make room there, or set TSGB"):
                log.append(other, Response(text="x" * 1000))
            assert path.read_bytes() == stored
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
            log.append(other, Response(text="then there was room"))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)
    with opened() as log:
        assert len(log) == 2


def test_a_directory_that_cannot_be_written_is_one_clear_line(tmp_path: Path) -> None:
    tmp_path.chmod(0o755)
    with (
        other_user(),
        pytest.raises(StoreError, match=r"cannot be used \(Permission denied\): set"),
    ):
        ResponseLog(tmp_path / "responses" / "x.jsonl", "x", {})
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match="cannot be used"):
        ResponseLog(tmp_path / "file" / "x.jsonl", "x", {})
    (tmp_path / "x.jsonl").symlink_to("/dev/null")
    with pytest.raises(StoreError, match="cannot be used"):
        ResponseLog(tmp_path / "x.jsonl", "x", {})


def test_the_time_of_an_answer(path: Path) -> None:
    with ResponseLog(path, "x", {}, now=lambda: datetime(2026, 1, 2, tzinfo=UTC)) as log:
        log.append(KEY, Response(text="x"))
    assert json.loads(path.read_text().splitlines()[1])["at"] == "2026-01-02T00:00:00+00:00"


WRITER = """
import sys
from pathlib import Path
from tsgb.eval.responses import ResponseLog, key_of
from tsgb.types import Response
path, number = Path(sys.argv[1]), sys.argv[2]
with ResponseLog(path, "x", {}) as log:
    for i in range(100):
        key = key_of([{"role": "user", "content": f"{number}.{i}"}])
        log.append(key, Response(text=number * (i * 97 % 5000)))
"""


@pytest.mark.integration
def test_processes_that_write_at_once_do_not_mix_their_lines(path: Path) -> None:
    writers = [
        subprocess.Popen([sys.executable, "-c", WRITER, str(path), number]) for number in "123"
    ]
    assert [writer.wait(timeout=120) for writer in writers] == [0, 0, 0]
    notes: list[str] = []
    with ResponseLog(path, "x", {}, note=notes.append) as log:
        assert (len(log), notes) == (300, [])
        for number in "123":
            for i in range(100):
                found = log.find(key_of(user(f"{number}.{i}")))
                assert found is not None
                assert found.response.text == number * (i * 97 % 5000)


HOLDER = """
import sys, time
from pathlib import Path
from tsgb.eval.responses import ResponseLog
log = ResponseLog(Path(sys.argv[1]), "x", {})
print(log.claim(sys.argv[2]), flush=True)
time.sleep(600)
"""


@pytest.mark.integration
def test_a_question_that_another_process_asks_is_free_again_when_that_process_dies(
    path: Path,
) -> None:
    with ResponseLog(path, "x", {}) as log:
        holder = subprocess.Popen(
            [sys.executable, "-c", HOLDER, str(path), KEY], stdout=subprocess.PIPE, text=True
        )
        try:
            assert holder.stdout is not None
            assert holder.stdout.readline() == "True\n"
            assert not log.claim(KEY)
            assert log.claim(key_of(user("other")))
            log.append(KEY, Response(text="others may write meanwhile"))
        finally:
            os.kill(holder.pid, signal.SIGKILL)
            holder.wait()
            if holder.stdout is not None:
                holder.stdout.close()
        assert log.claim(KEY)
        log.release(KEY)

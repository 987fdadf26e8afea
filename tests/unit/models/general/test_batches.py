"""Micro-batches hold every row once, whole, within their limit."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from tsgb.models.general.batches import micro_batches

rows = st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=9), min_size=1, max_size=8)


@given(rows, st.integers(1, 40), st.booleans(), st.randoms(use_true_random=False))
def test_rows_come_back_whole(rows: list[list[int]], limit: int, share: bool, random) -> None:
    firsts = [random.randrange(len(row)) for row in rows]
    positions = [[first, len(row) - 1] for first, row in zip(firsts, rows, strict=True)]
    batches = micro_batches(rows, positions, limit=limit, share=share)
    assert sorted(number for batch in batches for number in batch.numbers) == [*range(len(rows))]
    for batch in batches:
        assert share or not batch.prefixes
        width = max(map(len, batch.suffixes))
        looked = iter(batch.flat_positions(width))
        for place, number in enumerate(batch.numbers):
            prefix = batch.prefixes[batch.parents[place]] if batch.prefixes else []
            suffix = batch.suffixes[place]
            assert [*prefix, *suffix] == rows[number]
            for position in positions[number]:
                row, column = divmod(next(looked), width)
                assert (row, column + len(prefix)) == (place, position)
        longest = max(map(len, batch.prefixes), default=0)
        tokens = len(batch.prefixes) * longest + len(batch.numbers) * width
        assert tokens <= limit or len(batch.numbers) == 1


def test_a_template_and_a_chat_are_read_once() -> None:
    stem, ends = [*range(50)], [[60], [61, 62], [63]]
    (batch,) = micro_batches(
        [[*stem, *end] for end in ends], [[50], [51], [50]], limit=999, share=True
    )
    assert batch.prefixes == [tuple(stem)]
    chats = [[*range(30)], [*range(30, 55)]]
    completed = [[*chat, *end] for chat in chats for end in ends]
    firsts = [len(chat) - 1 for chat in chats for _ in ends]
    (batch,) = micro_batches(completed, [[first] for first in firsts], limit=999, share=True)
    assert sorted(batch.prefixes) == [tuple(chat[:-1]) for chat in chats]
    assert len(batch.numbers) == 6


def test_rows_that_begin_apart_share_nothing() -> None:
    (batch,) = micro_batches([[1, 2, 3], [2, 3]], [[2], [1]], limit=999, share=True)
    assert batch.prefixes == []

"""Which partition a record goes to."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from onecontainer.jobs.dispatch.records import LEAST_BATCH, Record, by_key, shared_out


def records(count: int) -> list[Record]:
    return [Record(b"%d" % number, b"", ()) for number in range(count)]


@given(st.integers(0, 500), st.integers(1, 12), st.integers(0, 100))
def test_each_record_is_shared_out_once_and_in_order(count: int, partitions: int, first: int) -> None:
    made = records(count)
    shared = shared_out(made, partitions, first)
    assert [record for part in shared.values() for record in part] == made
    assert all(0 <= partition < partitions for partition in shared)
    assert len(shared) <= max(1, -(-count // LEAST_BATCH))
    assert all(shared.values())


def test_the_next_ones_go_to_the_next_partition() -> None:
    assert [list(shared_out(records(1), 4, turn)) for turn in range(5)] == [[0], [1], [2], [3], [0]]
    assert sorted(shared_out(records(4 * LEAST_BATCH), 4, 1)) == [0, 1, 2, 3]


@given(st.lists(st.binary(min_size=1, max_size=3)), st.integers(1, 6))
def test_records_of_a_key_stay_in_one_partition_and_in_order(keys: list[bytes], partitions: int) -> None:
    made = [Record(key, b"%d" % number, ()) for number, key in enumerate(keys)]
    found = by_key(made, partitions)
    homes = [{part for part, group in found.items() for one in group if one.key == key} for key in set(keys)]
    assert all(len(home) == 1 for home in homes)
    for group in found.values():
        assert [int(one.value) for one in group] == sorted(int(one.value) for one in group)

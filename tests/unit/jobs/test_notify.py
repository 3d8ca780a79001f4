"""Changes as lines: what goes out comes in again."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from onecontainer.jobs.ledger import Changed
from onecontainer.jobs.model import State
from onecontainer.jobs.notify import change_from_line, change_to_line

numbers = st.integers(min_value=0, max_value=2**62)
states = st.sampled_from(State)
CHANGES = st.builds(
    Changed,
    *(st.just("0" * 32), st.just("7f8d3e0c-0000-4000-8000-000000000000"), states, numbers, numbers, numbers),
    st.sampled_from(["", "sidecars/echo-0123456789ab"]),
    cancel_mode=st.integers(0, 2),
    left_lease=st.booleans(),
    lost=st.booleans(),
    old_state=st.none() | states,
    orders=st.booleans(),
)


@given(CHANGES)
def test_a_change_comes_back_as_it_was(change: Changed) -> None:
    assert change_from_line(change_to_line(change)) == change


@given(CHANGES)
def test_a_line_of_a_newer_release_is_read(change: Changed) -> None:
    assert change_from_line(change_to_line(change) + " more") == change

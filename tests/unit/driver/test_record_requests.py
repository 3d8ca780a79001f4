"""The rail of writes: who does not say which records does not get all of them."""

from __future__ import annotations

import pytest

from onecontainer.api.db.v1 import database_pb2 as pb
from onecontainer.api.db.v1 import query_pb2
from onecontainer.driver import errors
from onecontainer.driver.records.requests import always, check_chosen
from tests.fixtures.records import all_of, any_of, equals

F = query_pb2.Filter
SOME = equals("id", 1)
NONE_OF = F(membership=query_pb2.Membership(column="id"))


def negation(node: F) -> F:
    return F(negation=node)


ASK_NOTHING = {
    "all_of": all_of(),
    "nested": all_of(all_of(), all_of(all_of())),
    "not_any_of": negation(any_of()),
    "not_membership": negation(NONE_OF),
    "not_false": negation(all_of(SOME, NONE_OF)),
    "or_true": any_of(SOME, all_of()),
    "only_true": any_of(all_of()),
    "not_not": negation(negation(all_of())),
}
ASK_SOMETHING = {
    "comparison": SOME,
    "with_true": all_of(all_of(), SOME),
    "or": any_of(SOME, NONE_OF),
    "not": negation(SOME),
    "membership": NONE_OF,
    "any_of": any_of(),
    "false": all_of(SOME, any_of()),
    "no_node": F(),
}


@pytest.mark.parametrize("name", ASK_NOTHING)
@pytest.mark.parametrize("kind", [pb.UpdateRecordsRequest, pb.DeleteRecordsRequest])
def test_a_filter_that_asks_nothing_is_no_filter(
    kind: type[pb.UpdateRecordsRequest | pb.DeleteRecordsRequest], name: str
) -> None:
    with pytest.raises(errors.FieldRequired, match="all_records") as raised:
        check_chosen(kind(where=ASK_NOTHING[name]), "statements[3].delete.")
    assert raised.value.violations[0].field == "statements[3].delete.where"


@pytest.mark.parametrize("name", ASK_SOMETHING)
def test_one_that_asks_something_passes(name: str) -> None:
    check_chosen(pb.DeleteRecordsRequest(where=ASK_SOMETHING[name]), "")


def test_what_no_record_passes_is_known() -> None:
    assert always(NONE_OF) is False
    assert always(any_of(NONE_OF, any_of())) is False
    assert always(any_of(NONE_OF, SOME)) is None

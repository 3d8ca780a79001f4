"""Errors as a person and as a script see them."""

from __future__ import annotations

import json

import pytest

from onecontainer import errors
from onecontainer.cli.failures import HINTS, exit_code, lines, report
from onecontainer.driver.processes.process import died
from onecontainer.rpc.status import from_status, to_status


def over_the_wire(error: errors.OneContainerError, hop: str = "gateway") -> errors.OneContainerError:
    return from_status(to_status(error, hop=hop))


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (errors.ResourceConflict(), 1),
        (errors.FieldRequired("service.app"), 2),
        (errors.ModelNotFound(), 3),
        (errors.DriverUnreachable(), 4),
        (errors.DeadlineExceeded(), 5),
        (errors.Stalled(), 5),
        (errors.Cancelled(), 130),
    ],
)
def test_exit_codes(error: errors.OneContainerError, code: int) -> None:
    assert exit_code(over_the_wire(error)) == code


def test_reason_message_field_place_and_next_step_are_shown() -> None:
    violation = errors.FieldViolation("outputs[0].file.container", "is no container")
    error = errors.FieldInvalid(
        message="1 field is wrong", violations=[violation], metadata={"service": "services/films"}
    )
    assert lines(over_the_wire(error, "sidecar"), "") == [
        "\x1b[31m\x1b[1mError: FIELD_INVALID\x1b[0m: 1 field is wrong",
        "  outputs[0].file.container: is no container",
        "  (from the sidecar, service services/films)",
        f"  → {HINTS[errors.Reason.FIELD_INVALID]}",
    ]


def test_a_field_that_the_message_names_is_not_told_twice() -> None:
    assert len(lines(over_the_wire(errors.FieldRequired("app")), "")) == 3


def test_nobody_there_tells_where_and_how_to_start_one() -> None:
    shown = "\n".join(lines(errors.DriverUnreachable("connection refused"), "127.0.0.1:9"))
    assert "no gateway answers at 127.0.0.1:9" in shown
    assert "oca up" in shown


def test_programs_get_the_error_as_json(capsys: pytest.CaptureFixture[str]) -> None:
    error = over_the_wire(errors.LimitExceeded("full", retry_after=2.5))
    assert report(error, as_json=True, address="") == 1
    told = json.loads(capsys.readouterr().err)["error"]
    assert (told["reason"], told["code"], told["retry_after"]) == ("LIMIT_EXCEEDED", "RESOURCE_EXHAUSTED", 2.5)


def test_a_childs_death_is_not_told_as_the_sidecars() -> None:
    dead = died(-9, "in jobs/1", ["last words"])
    assert "died" in lines(over_the_wire(dead, "sidecar"), "")[-1]
    away = errors.DriverUnreachable(metadata={"sidecar": "sidecars/x"})
    for error in (dead, away):
        assert "(re)started" not in lines(over_the_wire(error, "gateway"), "")[-1]


def test_what_a_command_knows_of_the_way_out_goes_first() -> None:
    error = over_the_wire(errors.CredentialsInvalid("no"))
    error.add_note("Give --registration-token-file.")
    assert lines(error, "")[-1] == "  → Give --registration-token-file."


def test_what_to_do_next_depends_on_what_was_asked() -> None:
    cannot = over_the_wire(errors.BackendCapabilityMissing("query.where", "needs ALLOW FILTERING"), "backend")
    assert "oca media capabilities" in lines(cannot, "", "media")[-1]
    for group in ("db", "call", ""):
        assert "media" not in lines(cannot, "", group)[-1]
    assert "oca driver get" in lines(cannot, "", "db")[-1]
    no_table = over_the_wire(errors.ResourceNotFound("there is no table 'x'"), "sidecar")
    assert "oca db tables SERVICE" in lines(no_table, "", "db")[-1]
    no_service = over_the_wire(errors.ResourceNotFound(resource=("onecontainer.dev/Service", "services/x")))
    assert "oca service list" in lines(no_service, "", "db")[-1]


def test_a_file_that_cannot_be_written_is_a_plain_error(capsys: pytest.CaptureFixture[str]) -> None:
    assert report(PermissionError(13, "Permission denied", "/x"), as_json=False, address="") == 1
    assert capsys.readouterr().err == "Error: Permission denied: /x\n"


def test_our_own_defects_are_not_dressed_up() -> None:
    assert report(ZeroDivisionError(), as_json=False, address="") is None


def test_what_a_driver_says_does_not_move_the_cursor() -> None:
    """Neither of one of the SDK's, which the wire has cleaned, nor of any other."""
    said = "\x1b[2J\x1b[1;1Hall is well"
    error = errors.BackendExecutionFailed(said, violations=[errors.FieldViolation("f", said)])
    for one in (error, over_the_wire(error)):
        text = "".join(lines(one, ""))
        assert said not in text
        assert "\\x1b[2J" in text

"""What a request may refer to, and what of it is seen."""

from __future__ import annotations

import pytest
from onecontainer_driver_ffmpeg.secrets import Secrets
from onecontainer_driver_ffmpeg.settings import Settings

from onecontainer.driver import errors


def test_a_reference_becomes_its_text() -> None:
    secrets = Settings.from_options({"secrets": {"cdn": "key-of-the-cdn", "live": "key"}}).secrets
    assert secrets.lookup("secrets/cdn", "outputs[0].live.rtmp.stream_key_secret") == "key-of-the-cdn"


@pytest.mark.parametrize(
    ("reference", "error"),
    [
        ("", errors.FieldInvalid),
        ("cdn", errors.FieldInvalid),
        ("secrets/", errors.FieldInvalid),
        ("secrets/../cdn", errors.FieldInvalid),
        ("secrets/a/b", errors.FieldInvalid),
        ("secrets/other", errors.SourceNotAllowed),
    ],
)
def test_what_is_no_reference_or_not_given_names_the_field(reference: str, error: type[errors.FieldInvalid]) -> None:
    secrets = Secrets.from_option({"cdn": "key-of-the-cdn"})
    with pytest.raises(error) as caught:
        secrets.lookup(reference, "outputs[0].uploads[1].credentials_secret")
    assert caught.value.violations[0].field == "outputs[0].uploads[1].credentials_secret"
    assert "key-of-the-cdn" not in str(caught.value)


@pytest.mark.parametrize(
    ("option", "field"),
    [
        ({"a b": "text"}, "options.secrets"),
        ({"a": ""}, "options.secrets.a"),
        ({"a": 3}, "options.secrets.a"),
        ({"a": "x" * 70_000}, "options.secrets.a"),
    ],
)
def test_a_wrong_option_is_refused_at_attach(option: dict[str, object], field: str) -> None:
    with pytest.raises(errors.FieldInvalid) as caught:
        Settings.from_options({"secrets": option})
    assert caught.value.violations[0].field == field
    assert "xxxx" not in str(caught.value)


def test_texts_are_seen_nowhere() -> None:
    settings = Settings.from_options({"secrets": {"long": "key-and-more", "short": "key-and", "tiny": "a"}})
    assert "key-and" not in repr(settings)
    assert settings.secrets.hide("rtmp://host/live/key-and-more?x=key-and a") == "rtmp://host/live/***?x=*** a"

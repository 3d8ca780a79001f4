"""Tests of the driver without a gateway: `pytest` in this folder."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from onecontainer_driver_scaffold_name import ScaffoldNameDriver

from onecontainer.api.ai.v1 import inference_service_pb2 as pb
from onecontainer.driver import errors
from onecontainer.driver.testing import attachment_of

FOLDER = Path(__file__).parent.parent
CONTEXT: Any = SimpleNamespace(service="services/test")


def attached(tmp_path: Path, **options: object) -> ScaffoldNameDriver:
    driver = ScaffoldNameDriver()
    driver.attach(attachment_of(FOLDER, tmp_path, options))
    return driver


@pytest.mark.parametrize(
    ("text", "label"),
    [
        ("where are the other people of this town", "english"),
        ("wo sind denn die anderen Leute geblieben", "german"),
        ("où sont les autres gens de cette ville", "french"),
    ],
)
def test_languages_are_told_apart(tmp_path: Path, text: str, label: str) -> None:
    request = pb.PredictRequest(service="services/test")
    request.inputs.add(text=text)
    response = attached(tmp_path).predict(request, CONTEXT)
    classes = response.predictions[0].classification.classes
    assert classes[0].label == label
    assert sum(one.probability for one in classes) == pytest.approx(1)


def test_examples_make_other_classes(tmp_path: Path) -> None:
    driver = attached(tmp_path, examples={"vowels": "aeiou eau aie", "consonants": "brtz krks pfft"})
    request = pb.PredictRequest(service="services/test")
    request.inputs.add(text="grrr brrr")
    assert driver.predict(request, CONTEXT).predictions[0].classification.classes[0].label == "consonants"
    with pytest.raises(errors.FieldInvalid, match=r"options\.examples"):
        attached(tmp_path, examples={"one": "text"})


def test_what_is_wrong_is_typed(tmp_path: Path) -> None:
    driver = attached(tmp_path)
    with pytest.raises(errors.FieldRequired, match="inputs"):
        driver.predict(pb.PredictRequest(), CONTEXT)
    request = pb.PredictRequest(model="other")
    with pytest.raises(errors.ModelNotFound):
        driver.predict(request, CONTEXT)
    request = pb.PredictRequest()
    request.inputs.add(text="123")
    with pytest.raises(errors.DataInvalid, match=r"inputs\[0\]\.text"):
        driver.predict(request, CONTEXT)


def test_metadata_names_the_class() -> None:
    metadata = json.loads((FOLDER / "metadata.json").read_text())
    assert metadata["entry_point"].endswith(f":{ScaffoldNameDriver.__name__}")

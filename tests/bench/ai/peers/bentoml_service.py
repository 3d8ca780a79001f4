"""BentoML's service of this classifier: uploaded files, as its arrays are JSON to the outside."""

import os
from pathlib import Path

import bentoml
from classifier import CORES, Classifier


@bentoml.service(workers=CORES, traffic={"timeout": 120, "max_concurrency": 64})
class Served:
    def __init__(self) -> None:
        self.classifier = Classifier(os.environ["MODEL"])

    @bentoml.api
    def tensor(self, file: Path) -> bytes:
        return self.classifier.scores_of_bytes(file.read_bytes())

    @bentoml.api
    def image(self, file: Path) -> list[tuple[int, float]]:
        return self.classifier.classes(file.read_bytes())

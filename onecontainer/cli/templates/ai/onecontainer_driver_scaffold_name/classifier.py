"""A nearest-centroid classifier of text. Knows nothing of gRPC: replace it by your own model."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping

LANGUAGES = {
    "english": "the quick brown fox jumps over the lazy dog and this is how the people of the town would say it with their own words",
    "german": "der schnelle braune Fuchs springt über den faulen Hund und so würden es die Leute in der Stadt mit ihren Worten sagen",
    "french": "le vif renard brun saute par-dessus le chien paresseux et c'est ainsi que les gens de la ville le diraient avec leurs mots",
    "spanish": "el rápido zorro marrón salta sobre el perro perezoso y así es como lo diría la gente de la ciudad con sus palabras",
}

Vector = dict[str, float]


def features(text: str) -> Vector:
    """How often each pair of letters occurs, as a vector of length 1; empty for a text without letters."""
    words = "".join(letter if letter.isalpha() else " " for letter in text.lower()).split()
    counts = Counter(pair for word in words for pair in map("".join, zip(f" {word}", f"{word} ", strict=True)))
    length = math.sqrt(sum(count * count for count in counts.values()))
    return {pair: count / length for pair, count in counts.items()}


class Classifier:
    """Learns from one text per class."""

    def __init__(self, examples: Mapping[str, str]) -> None:
        self.labels = list(examples)
        self._centroids = [features(text) for text in examples.values()]

    def classify(self, text: str) -> list[tuple[int, float]]:
        """Index and probability of each class, best first; the probabilities add up to 1. Raises ValueError without any letter."""
        vector = features(text)
        if not vector:
            raise ValueError("has no letters")
        scores = [
            sum(weight * centroid.get(pair, 0.0) for pair, weight in vector.items()) for centroid in self._centroids
        ]
        # A softmax, sharp enough to tell close neighbours apart.
        weights = [math.exp(20 * score) for score in scores]
        total = sum(weights)
        return sorted(((index, weight / total) for index, weight in enumerate(weights)), key=lambda pair: -pair[1])

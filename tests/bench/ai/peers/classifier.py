"""The classifier as the users of other servers write it: onnxruntime, numpy and Pillow, with nothing of ours.

Runs in the peers' own environments, so it imports nothing else.
"""

import io
import os

import numpy as np
import onnxruntime
from PIL import Image

CORES = os.cpu_count() or 1
SIDE, RESIZED = 224, 256
MEAN, STD = 127.0, 128.0
"""Of the pixels, 0 to 255, as EfficientNet-Lite0 was trained."""
SHAPE = (1, 3, SIDE, SIDE)
TOP = 5


class Classifier:
    """One session with one thread for each run: as many runs as there are cores at the same time fill the machine."""

    def __init__(self, path: str) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        options.inter_op_num_threads = 1
        self._session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        self.input = self._session.get_inputs()[0].name
        self.output = self._session.get_outputs()[0].name

    def scores(self, tensor: np.ndarray) -> np.ndarray:
        """1 × 3 × 224 × 224 float32 to 1 × 1000 float32."""
        (scores,) = self._session.run([self.output], {self.input: tensor})
        return scores

    def scores_of_bytes(self, data: bytes) -> bytes:
        """The same, both as little-endian bytes."""
        return self.scores(np.frombuffer(data, np.float32).reshape(SHAPE)).tobytes()

    def classes(self, image: bytes) -> list[tuple[int, float]]:
        """The most probable classes of an encoded image: index and probability."""
        scores = self.scores(prepare(image))[0]
        e = np.exp(scores - scores.max())
        probabilities = e / e.sum()
        best = np.argsort(-probabilities)[:TOP]
        return [(int(index), float(probabilities[index])) for index in best]


def prepare(image: bytes) -> np.ndarray:
    """Resizes the shorter side, cuts the middle, normalises: what torchvision's presets do."""
    picture = Image.open(io.BytesIO(image)).convert("RGB")
    factor = RESIZED / min(picture.size)
    width, height = (int(side * factor) for side in picture.size)
    picture = picture.resize((width, height), Image.Resampling.BICUBIC)
    left, top = (width - SIDE) // 2, (height - SIDE) // 2
    pixels = np.asarray(picture.crop((left, top, left + SIDE, top + SIDE)), np.float32)
    return np.ascontiguousarray(((pixels - MEAN) / STD).transpose(2, 0, 1)[None])

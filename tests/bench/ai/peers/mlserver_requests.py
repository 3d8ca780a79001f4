"""Writes what MLServer's clients send: the same tensor by the protocol's raw contents, and the image as BYTES.

python mlserver_requests.py TENSOR IMAGE OUT
"""

import sys
from pathlib import Path

from classifier import SHAPE
from mlserver.grpc.dataplane_pb2 import ModelInferRequest


def main(tensor: Path, image: Path, out: Path) -> None:
    request = ModelInferRequest(model_name="classifier")
    request.inputs.add(name="images", datatype="FP32", shape=SHAPE)
    request.raw_input_contents.append(tensor.read_bytes())
    (out / "tensor.bin").write_bytes(request.SerializeToString())
    request = ModelInferRequest(model_name="classifier")
    request.inputs.add(name="image", datatype="BYTES", shape=[1]).contents.bytes_contents.append(image.read_bytes())
    (out / "image.bin").write_bytes(request.SerializeToString())


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))

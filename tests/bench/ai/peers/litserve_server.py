"""LitServe's server of this classifier: an uploaded file, which is a tensor's bytes or an image by its field.

python litserve_server.py PORT MODEL
"""

import sys

import litserve
from classifier import CORES, Classifier
from starlette.requests import Request
from starlette.responses import Response


class Api(litserve.LitAPI):
    def __init__(self, model: str) -> None:
        super().__init__()
        self.path = model

    def setup(self, device: str) -> None:
        self.classifier = Classifier(self.path)

    def decode_request(self, request: Request) -> tuple[str, bytes]:
        ((field, file),) = request.items()
        return field, file.file.read()

    def predict(self, given: tuple[str, bytes]) -> object:
        field, data = given
        return self.classifier.scores_of_bytes(data) if field == "tensor" else self.classifier.classes(data)

    def encode_response(self, output: object) -> object:
        return Response(output, media_type="application/octet-stream") if isinstance(output, bytes) else output


if __name__ == "__main__":
    server = litserve.LitServer(Api(sys.argv[2]), accelerator="cpu", workers_per_device=CORES, timeout=120)
    server.run(port=int(sys.argv[1]), host="127.0.0.1", log_level="info", access_log=False, generate_client_file=False)

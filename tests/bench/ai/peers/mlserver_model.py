"""MLServer's runtime of this classifier: FP32 tensors, or images as BYTES."""

import json

from classifier import Classifier
from mlserver import MLModel
from mlserver.codecs import NumpyCodec, StringCodec
from mlserver.types import InferenceRequest, InferenceResponse


class Served(MLModel):
    async def load(self) -> bool:
        self.classifier = Classifier(self.settings.parameters.uri)
        return True

    async def predict(self, payload: InferenceRequest) -> InferenceResponse:
        given = payload.inputs[0]
        if given.datatype == "BYTES":
            data = given.data.root
            found = self.classifier.classes(data[0] if isinstance(data, list) else data)
            output = StringCodec.encode_output("classes", [json.dumps(found)])
        else:
            output = NumpyCodec.encode_output("scores", self.classifier.scores(NumpyCodec.decode_input(given)))
        return InferenceResponse(model_name=self.name, outputs=[output])

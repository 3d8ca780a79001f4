"""The reference: the least that a gRPC service of this classifier can be. One method for tensors, one for images, no error handling.

python minimal.py LISTEN MODEL
"""

import asyncio
import json
import sys
from concurrent.futures import ThreadPoolExecutor

import grpc
from classifier import CORES, Classifier
from google.protobuf.wrappers_pb2 import BytesValue, StringValue

UNLIMITED = [("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)]


async def main(listen: str, model: str) -> None:
    classifier = Classifier(model)
    pool = ThreadPoolExecutor(CORES)
    loop = asyncio.get_running_loop()

    async def tensor(request: BytesValue, context: object) -> BytesValue:
        return BytesValue(value=await loop.run_in_executor(pool, classifier.scores_of_bytes, request.value))

    async def image(request: BytesValue, context: object) -> StringValue:
        return StringValue(value=json.dumps(await loop.run_in_executor(pool, classifier.classes, request.value)))

    server = grpc.aio.server(options=UNLIMITED)
    methods = {
        name: grpc.unary_unary_rpc_method_handler(handler, BytesValue.FromString, answer.SerializeToString)
        for name, handler, answer in (("Tensor", tensor, BytesValue), ("Image", image, StringValue))
    }
    server.add_generic_rpc_handlers([grpc.method_handlers_generic_handler("bench.Minimal", methods)])
    server.add_insecure_port(listen)
    await server.start()
    print("READY", flush=True)
    await server.wait_for_termination()


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))

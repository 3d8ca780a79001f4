"""Base class of AI drivers: the methods of `onecontainer.api.ai.v1.InferenceService`. Override those that the driver has."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from google.protobuf.descriptor import ServiceDescriptor

from onecontainer.api.ai.v1 import inference_service_pb2 as pb
from onecontainer.api.ai.v1 import model_pb2, usage_pb2
from onecontainer.driver.context import Context
from onecontainer.driver.driver import Answer, Answers, Driver
from onecontainer.driver.isolation import Requests
from onecontainer.driver.methods import not_implemented


class InferenceDriver(Driver):
    """Serves models and asks them. What each method does and raises is told in the proto.

    With `inference.GRPCInferenceService` among the services of its metadata.json it also speaks the Open Inference Protocol, without a
    line of its own.
    """

    services: ClassVar[tuple[ServiceDescriptor, ...]] = (pb.DESCRIPTOR.services_by_name["InferenceService"],)
    facades: ClassVar[Mapping[str, str]] = {
        # By name: its stubs and those of tritonclient cannot be in one process, and a driver may well use that.
        "inference.GRPCInferenceService": "onecontainer.driver.open_inference.facade:OpenInference"
    }

    @not_implemented
    def get_usage(self, request: pb.GetUsageRequest, context: Context) -> Answer[usage_pb2.Usage]:
        """What the service can do."""
        raise NotImplementedError

    @not_implemented
    def serve_model(self, request: pb.ServeModelRequest, context: Context) -> Answer[pb.ServeModelResult]:
        """Job: fetches and loads a model."""
        raise NotImplementedError

    @not_implemented
    def get_model(self, request: pb.GetModelRequest, context: Context) -> Answer[model_pb2.Model]:
        """A model with its versions."""
        raise NotImplementedError

    @not_implemented
    def list_models(self, request: pb.ListModelsRequest, context: Context) -> Answer[pb.ListModelsResponse]:
        """The models that are known, by name."""
        raise NotImplementedError

    @not_implemented
    def unload_model(self, request: pb.UnloadModelRequest, context: Context) -> Answer[pb.UnloadModelResponse]:
        """Takes a version out of memory; answers when the memory is free."""
        raise NotImplementedError

    @not_implemented
    def predict(self, request: pb.PredictRequest, context: Context) -> Answer[pb.PredictResponse]:
        """Asks a model."""
        raise NotImplementedError

    @not_implemented
    def predict_stream(
        self, requests: Requests[pb.PredictStreamRequest], context: Context
    ) -> Answers[pb.PredictStreamResponse]:
        """Asks models item by item: an answer or an error for each, in order."""
        raise NotImplementedError

    @not_implemented
    def batch_predict(self, request: pb.BatchPredictRequest, context: Context) -> Answer[pb.BatchPredictResult]:
        """Job: asks a model about many items."""
        raise NotImplementedError

    @not_implemented
    def get_model_statistics(
        self, request: pb.GetModelStatisticsRequest, context: Context
    ) -> Answer[pb.GetModelStatisticsResponse]:
        """Counts and times of the models."""
        raise NotImplementedError

"""Base class of media drivers: the methods of `onecontainer.api.media.v1.MediaService`. Override those that the driver has."""

from __future__ import annotations

from typing import ClassVar

from google.protobuf.descriptor import ServiceDescriptor

from onecontainer.api.media.v1 import media_pb2 as pb
from onecontainer.api.media.v1 import pipeline_pb2
from onecontainer.driver.context import Context
from onecontainer.driver.driver import Answer, Driver
from onecontainer.driver.methods import not_implemented


class MediaDriver(Driver):
    """Probes, converts and captures media. What each method does and raises is told in the proto."""

    services: ClassVar[tuple[ServiceDescriptor, ...]] = (pb.DESCRIPTOR.services_by_name["MediaService"],)

    @not_implemented
    def probe_media(self, request: pb.ProbeRequest, context: Context) -> Answer[pb.ProbeResponse]:
        """`Probe`: what is in a medium. (`probe` is the driver's own: whether its backend works.)"""
        raise NotImplementedError

    @not_implemented
    def list_capabilities(
        self, request: pb.ListCapabilitiesRequest, context: Context
    ) -> Answer[pb.ListCapabilitiesResponse]:
        """Codecs, filters, formats and protocols that this backend has."""
        raise NotImplementedError

    @not_implemented
    def run_pipeline(self, request: pb.RunPipelineRequest, context: Context) -> Answer[pipeline_pb2.RunPipelineResult]:
        """Job: reads inputs, converts, writes outputs."""
        raise NotImplementedError

    @not_implemented
    def capture_frame(self, request: pb.CaptureFrameRequest, context: Context) -> Answer[pb.CaptureFrameResponse]:
        """One picture of a medium."""
        raise NotImplementedError

"""The answer of ListCapabilities: what the build has, and what of it requests may use."""

from __future__ import annotations

from onecontainer.api.media.v1 import capabilities_pb2 as pb
from onecontainer.api.media.v1 import media_info_pb2, media_pb2, pipeline_pb2, stream_pb2
from onecontainer_driver_ffmpeg import allowed
from onecontainer_driver_ffmpeg.capabilities import Capabilities, hardware_of
from onecontainer_driver_ffmpeg.hardware import APIS
from onecontainer_driver_ffmpeg.media_info import to_duration
from onecontainer_driver_ffmpeg.settings import Settings
from onecontainer_driver_ffmpeg.targets import TARGETS
from onecontainer_driver_ffmpeg.targets.live import PROTOCOLS

_KINDS = {
    "video": media_info_pb2.STREAM_KIND_VIDEO,
    "audio": media_info_pb2.STREAM_KIND_AUDIO,
    "subtitle": media_info_pb2.STREAM_KIND_SUBTITLE,
    "data": media_info_pb2.STREAM_KIND_DATA,
    "attachment": media_info_pb2.STREAM_KIND_ATTACHMENT,
}


async def list_capabilities(capabilities: Capabilities, settings: Settings) -> media_pb2.ListCapabilitiesResponse:
    devices = {api: await capabilities.hardware.working_devices(api) for api in APIS}
    encoders = [
        pb.EncoderCapability(
            name=encoder.name,
            description=encoder.description,
            kind=_KINDS[encoder.kind],
            codec=encoder.codec,
            experimental=encoder.experimental,
            hardware=APIS.get(hardware_of(encoder.name), stream_pb2.HARDWARE_API_UNSPECIFIED),
            unavailable=bool(hardware_of(encoder.name)) and not devices.get(hardware_of(encoder.name)),
        )
        for encoder in capabilities.encoders.values()
    ]
    codecs = [
        pb.CodecCapability(
            name=codec.name,
            description=codec.description,
            kind=_KINDS[codec.kind],
            encoders=_default_first(codec.encoders, capabilities.encoder_for(codec.name)),
            decoders=codec.decoders,
            lossy=codec.lossy,
        )
        for codec in capabilities.codecs.values()
    ]
    containers = [
        pb.ContainerCapability(
            name=container.name,
            muxer=container.muxer,
            media_type=container.media_type,
            default_video_encoder=await capabilities.default_encoder(container, "video") or "",
            default_audio_encoder=await capabilities.default_encoder(container, "audio") or "",
            default_subtitle_encoder=await capabilities.default_encoder(container, "subtitle") or "",
            codecs=sorted(container.holds or ()),
        )
        for container in capabilities.containers()
    ]
    inputs_allowed = capabilities.demuxer_names()
    formats = [
        pb.FormatCapability(
            name=entry.name,
            description=entry.description,
            demuxer=entry.demuxer,
            muxer=entry.muxer,
            input_allowed=entry.demuxer and bool(inputs_allowed & set(entry.name.split(","))),
        )
        for entry in capabilities.formats.values()
    ]
    filters = [
        pb.FilterCapability(
            name=entry.name,
            description=entry.description,
            inputs=[_KINDS[kind] for kind in entry.inputs or ()],
            outputs=[_KINDS[kind] for kind in entry.outputs or ()],
            dynamic_inputs=entry.inputs is None,
            allowed=entry.name in allowed.FILTERS,
        )
        for entry in capabilities.filters.values()
    ]
    usable = {"file", *(("http", "https") if settings.sources.hosts.rules else ())}
    if settings.sinks.hosts.rules:
        usable |= PROTOCOLS & capabilities.output_protocols
    protocols = [
        pb.ProtocolCapability(
            name=name,
            input=name in capabilities.input_protocols,
            output=name in capabilities.output_protocols,
            allowed=name in usable,
        )
        for name in sorted(capabilities.input_protocols | capabilities.output_protocols)
    ]
    hardware = [
        pb.HardwareCapability(
            api=api,
            compiled_in=any(hardware_of(name) == suffix for name in capabilities.encoders),
            devices=devices[suffix],
        )
        for suffix, api in APIS.items()
    ]
    return media_pb2.ListCapabilitiesResponse(
        version=capabilities.version,
        configuration=capabilities.configuration,
        codecs=sorted(codecs, key=lambda codec: codec.name),
        encoders=sorted(encoders, key=lambda encoder: encoder.name),
        containers=sorted(containers, key=lambda container: container.name),
        formats=sorted(formats, key=lambda entry: entry.name),
        filters=sorted(filters, key=lambda entry: entry.name),
        protocols=protocols,
        pixel_formats=sorted(capabilities.pixel_formats),
        hardware=hardware,
        limits=pipeline_pb2.PipelineLimits(
            max_output_bytes=settings.max_output_bytes,
            max_media_duration=to_duration(settings.max_media_duration),
            threads=settings.threads,
            max_memory_bytes=settings.max_memory_bytes,
        ),
        targets=list(TARGETS),
    )


def _default_first(encoders: tuple[str, ...], default: str | None) -> list[str]:
    return sorted(encoders, key=lambda name: name != default)

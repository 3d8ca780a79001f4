"""The server behind the driver: one channel, and its answers or typed errors."""

from __future__ import annotations

import time
from typing import Any, TypeVar

import grpc
from google.protobuf.message import Message

from onecontainer.api.third_party.inference import grpc_service_pb2 as oip
from onecontainer.driver import errors
from onecontainer_driver_oip.settings import Settings, Tls

R = TypeVar("R", bound=Message)
Code = errors.Code

SERVICE = "/inference.GRPCInferenceService/"
RETRY_AFTER = 1.0
MARGIN = 0.05
"""Part of the time left that is kept for telling the caller that the server was too slow."""
HEADROOM = 1.25
"""What gRPC lets through beyond `max_message_bytes`: the request's other fields."""


class Unanswered(Exception):
    """The server ended a call with a status. It becomes a typed error where it is known what was asked."""

    def __init__(self, code: errors.Code, message: str) -> None:
        super().__init__(message)
        self.code = code
        self.message = message[:500]


class Upstream:
    """Calls of `inference.GRPCInferenceService`. The channel connects by itself, and again after the server was away."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        limit = int(settings.max_message_bytes * HEADROOM)
        options: list[tuple[str, int | str]] = [
            ("grpc.max_receive_message_length", limit),
            ("grpc.max_send_message_length", limit),
            ("grpc.enable_retries", 0),
            ("grpc.initial_reconnect_backoff_ms", 100),
            ("grpc.min_reconnect_backoff_ms", 5_000),
            ("grpc.max_reconnect_backoff_ms", 2_000),
            ("grpc.use_local_subchannel_pool", 1),
        ]
        if settings.tls is None:
            self._channel = grpc.aio.insecure_channel(settings.target, options=options)
        else:
            if settings.tls.server_name:
                options.append(("grpc.ssl_target_name_override", settings.tls.server_name))
            self._channel = grpc.aio.secure_channel(settings.target, _credentials(settings.tls), options=options)

    async def close(self) -> None:
        await self._channel.close()

    async def ask(self, method: str, request: Message, answer: type[R], *, remaining: float | None = None) -> R:
        """One call; `remaining`: seconds that the caller waits.

        Raises Unanswered with the server's status, BackendUnreachable, and DeadlineExceeded. Cancelled, it cancels the call there.
        """
        timeout = self.settings.request_timeout
        if remaining is not None:
            timeout = min(timeout, remaining * (1 - MARGIN))
        call = self._channel.unary_unary(
            SERVICE + method, request_serializer=_serialize, response_deserializer=answer.FromString
        )
        begin = time.monotonic()
        try:
            response: Any = await call(request, timeout=timeout, metadata=self.settings.metadata)
        except grpc.aio.AioRpcError as error:
            code = Code(error.code().value[0])
            text = error.details() or code.name
            if code is Code.DEADLINE_EXCEEDED:
                seconds = time.monotonic() - begin
                raise errors.DeadlineExceeded(
                    f"the server at {self.settings.target} did not answer {method} in {seconds:.1f} s", hop="backend"
                ) from None
            if code in (Code.UNAVAILABLE, Code.CANCELLED):
                await self._explain(code, text, method)
            raise Unanswered(code, text) from None
        if not isinstance(response, answer):
            raise errors.BackendExecutionFailed(f"the server gave no answer to {method}", code=Code.INTERNAL)
        return response

    async def _explain(self, code: errors.Code, text: str, method: str) -> None:
        """Raises BackendUnreachable, unless the server is there: Triton says UNAVAILABLE of a model that it does not have, too."""
        if method != "ServerLive" and await self.alive():
            return
        raise self.unreachable(text)

    def unreachable(self, text: str) -> errors.BackendUnreachable:
        return errors.BackendUnreachable(
            f"the inference server at {self.settings.target} cannot be reached ({text[:300]}): it is away, or is no gRPC endpoint",
            metadata={"target": self.settings.target},
            retry_after=RETRY_AFTER,
            hop="backend",
        )

    async def alive(self) -> bool:
        """Whether it answers at all."""
        try:
            await self.ask(
                "ServerLive", oip.ServerLiveRequest(), oip.ServerLiveResponse, remaining=self.settings.probe_timeout
            )
        except Unanswered:
            return True
        except errors.OneContainerError:
            return False
        return True


def _serialize(message: Message) -> bytes:
    return message.SerializeToString()


def _credentials(tls: Tls) -> grpc.ChannelCredentials:
    return grpc.ssl_channel_credentials(
        root_certificates=tls.ca.encode() or None,
        private_key=tls.key.encode() or None,
        certificate_chain=tls.certificate.encode() or None,
    )


def typed(error: Unanswered, what: str) -> errors.OneContainerError:
    """The error for a status that says nothing of the models or data that were asked about."""
    words = f"the inference server refused {what}: {error.message}"
    match error.code:
        case Code.UNIMPLEMENTED:
            return errors.BackendCapabilityMissing("", f"the inference server does not have {what}: {error.message}")
        case Code.UNAUTHENTICATED | Code.PERMISSION_DENIED:
            # Not the caller's credentials, but the service's.
            return errors.BackendExecutionFailed(
                f"{words}; check the options `token`, `metadata` and `tls_certificate`",
                code=Code.FAILED_PRECONDITION,
                hop="backend",
            )
        case Code.RESOURCE_EXHAUSTED if "larger than max" in error.message or "message" in error.message.lower():
            return errors.MessageTooLarge(f"{words}; see the option `max_message_bytes`", hop="backend")
        case Code.RESOURCE_EXHAUSTED:
            return errors.LimitExceeded(words, retry_after=RETRY_AFTER, hop="backend")
        case Code.UNAVAILABLE:
            return errors.BackendUnreachable(words, retry_after=RETRY_AFTER, hop="backend")
        case Code.CANCELLED | Code.OK:
            return errors.BackendExecutionFailed(words, code=Code.ABORTED, hop="backend")
    return errors.BackendExecutionFailed(words, code=error.code, hop="backend")

"""Serving our own services: principals, typed errors and cancellation, the same for the gateway and a sidecar.

A servicer's methods have the proto's names and grpc.aio's signatures; they raise typed errors and read `current_call()`. What a
handler needs around it is put on here once, without interceptors: those would also burden the relay's path.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Iterable, Mapping
from contextlib import aclosing
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any, Protocol

import grpc
from google.protobuf import message_factory
from google.protobuf.descriptor import ServiceDescriptor

from onecontainer.errors import Cancelled, CredentialsInvalid
from onecontainer.rpc import status
from onecontainer.rpc.streams import confirmed

Metadata = Iterable[tuple[str, str | bytes]]

STRANGERS_KEY = "onecontainer-strangers"
"""Metadata by which a front says that its callers come from other machines: none of its calls is taken for one of this machine's own."""
Context = grpc.aio.ServicerContext[Any, Any]


@dataclass(frozen=True, slots=True)
class Call:
    """Who calls, and what came with the call."""

    principal: str
    traceparent: str = ""
    identity: object = None
    """What the authenticator knows beyond the name: on the internal listener, the sidecar instance."""
    metadata: Mapping[str, str] = field(default_factory=dict)


_call: ContextVar[Call] = ContextVar("onecontainer_call")


def current_call() -> Call:
    """The call that is being handled.

    Raises:
        LookupError: outside of a handler.
    """
    return _call.get()


class Authenticator(Protocol):
    """The seam of authentication: gateway and sidecars each have one."""

    def authenticate(self, metadata: Metadata) -> Call:
        """The caller. Raises CredentialsInvalid or PermissionDenied."""
        ...


def bearer_token(metadata: Metadata) -> str | None:
    """The token of ``authorization: Bearer TOKEN``; None without the header."""
    for key, value in metadata:
        if key == "authorization":
            text = value if isinstance(value, str) else value.decode("utf-8", "replace")
            scheme, _, token = text.partition(" ")
            if scheme.lower() != "bearer" or not token.strip():
                raise CredentialsInvalid("the authorization metadata must be `Bearer TOKEN`")
            return token.strip()
    return None


def header(metadata: Metadata, name: str) -> str:
    """A metadata value as text; empty if it is not there."""
    for key, value in metadata:
        if key == name:
            return value if isinstance(value, str) else value.decode("utf-8", "replace")
    return ""


class StaticTokens:
    """Bearer tokens with their principals; without a token the caller is ``anonymous``, or refused if that is None.

    A call that a front has marked with STRANGERS_KEY is never anonymous, whatever the front has made of its credentials.
    """

    def __init__(self, tokens: Mapping[str, str], anonymous: str | None) -> None:
        self._principals = {_digest(token): principal for token, principal in tokens.items()}
        self._anonymous = Call(anonymous) if anonymous is not None else None

    def authenticate(self, metadata: Metadata) -> Call:
        token, traceparent, stranger = None, "", False
        for key, _value in metadata:
            if key == "authorization":
                token = bearer_token(metadata)
            elif key == "traceparent":
                traceparent = header(metadata, "traceparent")
            elif key == STRANGERS_KEY:
                stranger = True
        if token is None:
            if self._anonymous is None or stranger:
                raise CredentialsInvalid("this listener needs credentials: send `authorization: Bearer TOKEN`")
            return self._anonymous if not traceparent else Call(self._anonymous.principal, traceparent)
        digest = _digest(token)
        # Looked up by its digest, so that the time it takes tells nothing of the tokens themselves.
        principal = self._principals.get(digest)
        if principal is None:
            raise CredentialsInvalid("the bearer token is not known here")
        return Call(principal, traceparent)


def _digest(token: str) -> bytes:
    return hashlib.sha256(token.encode()).digest()


def same_token(one: str, other: str) -> bool:
    """Compares two tokens in constant time."""
    return hmac.compare_digest(one.encode(), other.encode())


def service_handler(
    servicer: object,
    service: ServiceDescriptor,
    authenticator: Authenticator,
    *,
    hop: str = "gateway",
    unless: Callable[[str], BaseException | None] = lambda _method: None,
) -> grpc.GenericRpcHandler:
    """A handler of all of a service's methods that ``servicer`` has; others are UNIMPLEMENTED by gRPC.

    ``unless(full method name)`` may give an error to answer with before the method is entered, for example while draining.
    """
    handlers: dict[str, grpc.RpcMethodHandler[Any, Any]] = {}
    for method in service.methods:
        behaviour = getattr(servicer, method.name, None)
        if behaviour is None:
            continue
        full_name = f"{service.full_name}/{method.name}"
        request_class = message_factory.GetMessageClass(method.input_type)
        guard = _Guard(behaviour, full_name, authenticator, hop, unless, client_streaming=method.client_streaming)
        make = _SHAPES[(method.client_streaming, method.server_streaming)]
        handlers[method.name] = make(
            guard.stream if method.server_streaming else guard.unary,
            request_deserializer=request_class.FromString,
            response_serializer=_serialize,
        )
    return grpc.method_handlers_generic_handler(service.full_name, handlers)


def _serialize(message: Any) -> bytes:
    return message.SerializeToString()  # type: ignore[no-any-return]


_SHAPES: dict[tuple[bool, bool], Callable[..., grpc.RpcMethodHandler[Any, Any]]] = {
    (False, False): grpc.unary_unary_rpc_method_handler,
    (False, True): grpc.unary_stream_rpc_method_handler,
    (True, False): grpc.stream_unary_rpc_method_handler,
    (True, True): grpc.stream_stream_rpc_method_handler,
}


class _Guard:
    """Authenticates, and turns whatever leaves the handler into a typed status."""

    def __init__(
        self,
        behaviour: Callable[..., Any],
        full_name: str,
        authenticator: Authenticator,
        hop: str,
        unless: Callable[[str], BaseException | None],
        *,
        client_streaming: bool,
    ) -> None:
        self._client_streaming = client_streaming
        self._behaviour = behaviour
        self._full_name = full_name
        self._authenticator = authenticator
        self._hop = hop
        self._unless = unless

    def _enter(self, context: Context) -> None:
        _call.set(self._authenticator.authenticate(context.invocation_metadata() or ()))
        refusal = self._unless(self._full_name)
        if refusal is not None:
            raise refusal

    def _argument(self, request: Any, context: Context) -> Any:
        return confirmed(request, context) if self._client_streaming else request

    async def unary(self, request: Any, context: Context) -> Any:
        try:
            self._enter(context)
            behaviour: Callable[..., Awaitable[Any]] = self._behaviour
            return await behaviour(self._argument(request, context), context)
        except BaseException as error:
            await end(context, error, hop=self._hop)

    async def stream(self, request: Any, context: Context) -> AsyncIterator[Any]:
        try:
            self._enter(context)
            behaviour: Callable[..., AsyncGenerator[Any, None]] = self._behaviour
            # Closed here and now, not when the garbage collector comes by: handlers clean up behind their streams.
            async with aclosing(behaviour(self._argument(request, context), context)) as responses:
                async for response in responses:
                    yield response
        except GeneratorExit:
            raise
        except BaseException as error:
            await end(context, error, hop=self._hop)


async def end(context: Context, error: BaseException, *, hop: str, metadata: dict[str, str] | None = None) -> None:
    """Ends a call with what its handler raised; raises always.

    A CancelledError that just leaves a handler sends no status, and the client waits for ever (grpc #29248), so a
    cancellation that did not come from the client is answered with CANCELLED.
    """
    if isinstance(error, grpc.aio.AbortError) or not isinstance(error, Exception | asyncio.CancelledError):
        raise error
    if isinstance(error, asyncio.CancelledError):
        if not context.cancelled():
            await status.abort(context, Cancelled("the call was cancelled by the server"), hop=hop, metadata=metadata)
        raise error
    await status.abort(context, error, hop=hop, metadata=metadata)

"""`oca call`: any method of any service that the gateway knows, with JSON."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator, Callable, Iterator, Sequence
from typing import Any

import click
from google.protobuf import json_format, message_factory
from google.protobuf.descriptor import MethodDescriptor
from google.protobuf.message import Message

from onecontainer.cli.options import JSON, PAIR
from onecontainer.cli.session import Session, connected
from onecontainer.client.aio import AsyncClient
from onecontainer.client.reflection import Reflection


@click.command()
@click.argument("method", default="")
@click.argument("request", type=JSON, default="{}")
@click.option("--metadata", "-H", type=PAIR, multiple=True, help="KEY=VALUE to send with the call; may be repeated.")
@connected
def call(session: Session, method: str, request: list[Any], metadata: tuple[tuple[str, str], ...]) -> None:
    """Call METHOD with the JSON REQUEST. Nothing of the method need be known here: the gateway is asked by reflection.

    METHOD is `package.Service/Method`; the package may be left out. Without METHOD all services are listed, with a service
    alone its methods.

    REQUEST is JSON, `@FILE`, or `-` for stdin. A method that takes a stream takes several values one after the other, or one
    array. Answers of a stream are printed as they come.

    \b
    Examples:
      oca call
      oca call ManagementService
      oca call ManagementService/GetService '{"name": "services/cats"}'
      oca call InferenceService/PredictStream @items.jsonl -H onecontainer-service=services/cats
    """
    client = session.client
    reflection = Reflection(client.inner.caller)
    if not method or "/" not in method.strip("/"):
        show_contract(session, reflection, method)
        return
    found = client.portal.run(reflection.method, method)
    for name in types_in(request):
        client.portal.run(reflection.load_symbol, name)
    requests = messages_of(found, request)
    session.use_pool(reflection.pool)
    answers = client.portal.iterate(calling(client.inner, found, requests, metadata))
    for answer in answers:
        session.screen.data(session.screen.to_json(answer))


def show_contract(session: Session, reflection: Reflection, service: str) -> None:
    """Lists services, or the methods of one with their shapes."""
    if not service:
        names = session.client.portal.run(reflection.services)
        session.screen.rows([{"service": name} for name in names])
        return
    found = session.client.portal.run(reflection.service, service)
    session.screen.rows(
        [
            {
                "method": f"{found.full_name}/{method.name}",
                "request": ("stream " if method.client_streaming else "") + method.input_type.full_name,
                "answer": ("stream " if method.server_streaming else "") + method.output_type.full_name,
            }
            for method in found.methods
        ]
    )


def types_in(value: Any) -> Iterator[str]:
    """Names of the messages that are inside an Any: what a job's request holds, say, is in no file that CreateJob needs."""
    if isinstance(value, dict):
        if isinstance(value.get("@type"), str):
            yield value["@type"].rpartition("/")[2]
        value = list(value.values())
    if isinstance(value, list):
        for item in value:
            yield from types_in(item)


def messages_of(method: MethodDescriptor, values: Sequence[Any]) -> list[Message]:
    """The requests that JSON values stand for. A wrong field is a usage error that names it."""
    if method.client_streaming and len(values) == 1 and isinstance(values[0], list):
        values = values[0]
    if not method.client_streaming and len(values) != 1:
        raise click.UsageError(f"{method.name} takes one request, not {len(values)}")
    kind = message_factory.GetMessageClass(method.input_type)
    found = []
    for value in values:
        try:
            # The pool of the method's own file: an Any in the request may hold what only a plug-in knows.
            found.append(json_format.ParseDict(value, kind(), descriptor_pool=method.input_type.file.pool))
        except (json_format.ParseError, TypeError) as error:
            raise click.UsageError(f"{json.dumps(value)[:200]} is no {method.input_type.full_name}: {error}") from None
    return found


async def calling(
    client: AsyncClient, method: MethodDescriptor, requests: list[Message], metadata: Sequence[tuple[str, str]]
) -> AsyncGenerator[Message]:
    """Answers of the call, whatever its shape."""
    caller = client.caller
    channel = caller.channel
    answer_class = message_factory.GetMessageClass(method.output_type)
    shapes: dict[tuple[bool, bool], Callable[..., Any]] = {
        (False, False): channel.unary_unary,
        (False, True): channel.unary_stream,
        (True, False): channel.stream_unary,
        (True, True): channel.stream_stream,
    }
    multicallable = shapes[method.client_streaming, method.server_streaming](
        f"/{method.containing_service.full_name}/{method.name}",
        request_serializer=lambda message: message.SerializeToString(),
        response_deserializer=answer_class.FromString,
    )
    extra = caller.with_metadata(metadata)
    if method.client_streaming and method.server_streaming:
        answers = extra.talk(multicallable, requests)
    elif method.server_streaming:
        answers = extra.stream(multicallable, requests[0])
    else:
        work = (
            extra.send(multicallable, requests) if method.client_streaming else extra.unary(multicallable, requests[0])
        )
        yield await work
        return
    async for answer in answers:
        yield answer

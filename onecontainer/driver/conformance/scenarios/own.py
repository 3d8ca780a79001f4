"""A service that the kit has never seen, and examples of any service: what its author gives, or an empty request."""

from __future__ import annotations

from google.protobuf.message import Message

from onecontainer.driver.conformance.contract import Method
from onecontainer.driver.conformance.examples import Example
from onecontainer.driver.conformance.expect import UNTYPED, error_problem, require, status_problem
from onecontainer.driver.conformance.model import Failed
from onecontainer.driver.conformance.session import SERVICE, Sample, Session, Slow
from onecontainer.driver.conformance.wire import Answer
from onecontainer.errors import Code


async def works(session: Session, method: Method) -> None:
    """Raises Failed."""
    examples = session.examples.of(method.name)
    if method.client_streaming:
        session.holding.setdefault(method.name, method.empty(SERVICE).SerializeToString())
    if not examples:
        await _empty(session, method)
    for example in examples:
        await _example(session, method, example)


async def _empty(session: Session, method: Method) -> None:
    """OK, or a typed error: nobody knows what the method wants."""
    request = method.empty(SERVICE)
    sent = f"{method.short} with nothing but the service"
    answer = await _end(session, method, [request])
    if answer.ok:
        return
    problem = error_problem(answer)
    require(not problem, sent, f"{answer}: {problem}")
    require(answer.code not in UNTYPED, sent, str(answer))


async def _end(session: Session, method: Method, requests: list[Message]) -> Answer:
    """How a direct call, or the Run of a long-running method, ends; a failed attempt is an answer with its error."""
    if not method.long_running:
        return await session.call(method.name, requests)
    end = await session.run(session.grant(method.name, requests[0]))
    if not end.answer.ok:
        return end.answer
    match end.terminal.WhichOneof("event"):
        case "succeeded":
            data = session.decoded(method, end.terminal.succeeded, f"Run of {method.short}").SerializeToString()
            return Answer(method.name, Code.OK, "", (data,))
        case "failed":
            status = end.terminal.failed
            code = Code(status.code) if status.code in tuple(Code) else Code.UNKNOWN
            problem = status_problem(status, code)
            require(not problem, f"Run of {method.short}", f"{status.message}: {problem}")
            return Answer(method.name, code, status.message, status=status)
        case _:
            raise Failed(f"Run of {method.short}", str(end))


async def _example(session: Session, method: Method, example: Example) -> None:
    requests = example.messages(method, SERVICE)
    if example.slow:
        session.slow.append(Slow(method, requests[0]))
        return
    sent = session.told(method, requests[0] if len(requests) == 1 else requests)
    answer = await _end(session, method, requests)
    if example.error:
        require(answer.reason == example.error, sent, f"{answer}; wanted {example.error}")
        if method.unary:
            session.failing.append((method, requests[0]))
        return
    require(answer.ok, sent, str(answer))
    kind = method.result if method.long_running else method.response
    wanted = example.wanted(kind, method.name)
    if wanted is not None:
        got = kind.FromString(answer.message)
        require(got == wanted, sent, f"{{{got}}} instead of {{{wanted}}}")
    if method.client_streaming:
        session.holding[method.name] = requests[0].SerializeToString()
    if method.long_running:
        session.jobs.append((method, requests[0]))
    elif method.unary and (example.same or wanted is not None):
        session.samples.append(Sample(method, requests[0]))

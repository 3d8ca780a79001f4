"""The kit: all checks in their order, and a run of them against one driver."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from functools import partial
from typing import Any

import grpc

from onecontainer.driver.conformance.checks import attachment, calls, end, identity, jobs, runs, unattached
from onecontainer.driver.conformance.contract import Method
from onecontainer.driver.conformance.examples import Examples
from onecontainer.driver.conformance.model import Check, Failed, Outcome, Report, Result, Skipped, shortened
from onecontainer.driver.conformance.place import Place, Starter
from onecontainer.driver.conformance.scenarios import database, database_features, inference, media, own
from onecontainer.driver.conformance.scenarios.work import Work, Works
from onecontainer.driver.conformance.servicer import Desk
from onecontainer.driver.conformance.session import ServiceSpec, Session
from onecontainer.driver.conformance.stillness import Stillness
from onecontainer.driver.conformance.wire import Wire
from onecontainer.driver.serve import PACKAGES_MISSING
from onecontainer.errors import FieldInvalid
from onecontainer.rpc.channel import open_channel

log = logging.getLogger(__name__)

FIRST = "identity.answers"
ATTACHED_NEEDS = ("attach.works", "probe.ready")
WORKS = "works."
FEATURES = "features."
CHANNEL_BYTES = 256 * 1024 * 1024
"""What the kit's channel takes: more than any driver's own limit, which is the one that is tested."""
START_SECONDS = 60.0
MOST_TRIES = 3
"""Of a check that fails while the machine stands still."""
CHECK_CALLS = 8
"""A check may take as long as so many calls."""

BEFORE: tuple[Check, ...] = (
    *identity.CHECKS,
    *unattached.CHECKS[:-1],
    attachment.fields,
    unattached.typed,
    *attachment.CHECKS[1:],
    *unattached.ATTACHED_CHECKS,
)
AFTER: tuple[Check, ...] = (
    *calls.CHECKS,
    *runs.CHECKS,
    *jobs.CHECKS,
    *attachment.DETACH_CHECKS,
    *calls.LET_GO_CHECKS,
    *end.CHECKS,
)
CHECKS: tuple[Check, ...] = BEFORE + AFTER
"""All checks that do not depend on the driver's services. Between the two parts each claimed method has one of its own: `works.…`."""


class DriverAbsent(Exception):
    """No driver answers there. The message is for people."""


class DriverElsewhere(DriverAbsent):
    """It cannot be started in this environment, which lacks packages that it needs."""


@dataclass(frozen=True, slots=True)
class Selection:
    """Which checks are made.

    Attributes:
        smoke: only the quick ones, which attach to nothing.
        only, skip: patterns of ids, `run.*`. `only` brings what its checks need. Empty: all, none.
    """

    smoke: bool = False
    only: Sequence[str] = ()
    skip: Sequence[str] = ()

    def of(self, checks: Sequence[Check]) -> list[Check]:
        """The chosen ones, in order. Raises FieldInvalid if there are none."""
        chosen = [check for check in checks if not self.smoke or check.smoke]
        if self.only:
            wanted = {check.id for check in chosen if _matches(check.id, self.only)}
            chosen = [check for check in chosen if check.id in _closure(wanted, checks)]
        chosen = [check for check in chosen if not _matches(check.id, self.skip)]
        if not chosen:
            raise FieldInvalid(
                "only" if self.only else "skip", "no check is left to be made; docs/conformance.md lists them"
            )
        return chosen


def _matches(name: str, patterns: Iterable[str]) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in patterns)


def needs_of(check: Check) -> tuple[str, ...]:
    """What must have passed before a check is made."""
    first = () if check.id == FIRST else (FIRST,)
    attached = ATTACHED_NEEDS if check.attached else ()
    return (*first, *attached, *check.needs)


def _closure(wanted: set[str], checks: Sequence[Check]) -> set[str]:
    by_id = {check.id: check for check in checks}
    found: set[str] = set()
    todo = list(wanted)
    while todo:
        name = todo.pop()
        if name in found or name not in by_id:
            continue
        found.add(name)
        todo += needs_of(by_id[name])
        if by_id[name].attached and not name.startswith((WORKS, FEATURES)):
            # What works is what the others call.
            todo += [one for one in by_id if one.startswith(WORKS)]
    return found


def scenario_works() -> Works:
    """How each method of our own contracts is shown to work; anew for each run, for they remember what they have made."""
    return {**database.Database().works(), **inference.Inference().works(), **media.Media().works()}


def works_checks(session: Session) -> list[Check]:
    """A check for each claimed method."""
    if not session.contract:
        return []
    works = scenario_works()
    order = {name: number for number, name in enumerate(works)}
    claimed = sorted(session.claimed, key=lambda method: order.get(method.name, len(order)))
    return [_works_check(session, method, works.get(method.name)) for method in claimed]


def _works_check(session: Session, method: Method, work: Work | None) -> Check:
    def named(names: Iterable[str]) -> tuple[str, ...]:
        return tuple(f"{WORKS}{session.contract[name].short}" for name in names if session.claims(name))

    needed = () if work is None else work.needs
    absent = [name for name in needed if not session.claims(name)]

    async def run(session: Session) -> None:
        # Examples first: a scenario of ours may have to be skipped for what is missing in them.
        if work is None or session.examples.of(method.name):
            await own.works(session, method)
        if absent and not session.examples.of(method.name):
            raise Skipped(
                f"the kit needs {', '.join(absent)} to try it, which the driver does not claim; give --examples"
            )
        if work is not None and not absent:
            await work.run(session)

    return Check(
        f"{WORKS}{method.short}",
        f"{method.short} works",
        "What is claimed can be used.",
        "Do what the method's comment in its proto says.",
        run,
        named(needed),
        attached=True,
        after=() if work is None else named(work.after),
    )


def features_checks(session: Session) -> list[Check]:
    """A check for each claimed method whose contract leaves something open."""
    if not session.contract:
        return []
    features = database_features.Features()
    return [
        Check(
            f"{FEATURES}{session.contract[name].short}",
            f"{session.contract[name].short} can what is declared, and refuses the rest",
            "What the manifest says of a backend is true in both directions.",
            "List in metadata.json, under `backends`, what works, and refuse the rest as BACKEND_CAPABILITY_MISSING with the field's path.",
            partial(features.check, method=name),
            tuple(f"{WORKS}{session.contract[needed].short}" for needed in (*features.needs, name)),
            attached=True,
        )
        for name in features.methods
        if session.claims(name) and all(session.claims(needed) for needed in features.needs)
    ]


@dataclass
class Kit:
    """Runs checks.

    Attributes:
        starter: where the driver is, or how it is brought up.
        spec: the service that it is attached to.
        timeout: seconds that one call gets.
        tell: is given each result as soon as it is there.
    """

    starter: Starter
    spec: ServiceSpec = field(default_factory=ServiceSpec)
    examples: Examples = field(default_factory=Examples)
    selection: Selection = field(default_factory=Selection)
    timeout: float = 30.0
    tell: Callable[[Result], None] = lambda _result: None

    async def run(self) -> Report:
        """The report. Raises DriverAbsent if no driver answers at all."""
        async with self.starter.start() as place, Desk(place.desk, place.token) as desk:
            channel = open_channel(place.target, max_message_bytes=CHANNEL_BYTES, ca_file=place.ca_file)
            async with channel:
                await self._wait(channel, place)
                self.examples.lend(desk)
                session = Session(Wire(channel, place.token), place, desk, self.spec, self.examples, self.timeout)
                await session.look()
                results = await self._check(session)
                manifest = session.info.manifest
                return Report(f"{manifest.name} {manifest.version}".strip(), place.target, results)

    async def _wait(self, channel: grpc.aio.Channel, place: Place) -> None:
        gone = None if place.gone is None else asyncio.create_task(place.gone.wait())
        ready = asyncio.create_task(channel.channel_ready())
        tasks: list[asyncio.Task[Any]] = [ready] if gone is None else [ready, gone]
        try:
            await asyncio.wait(tasks, timeout=START_SECONDS, return_when=asyncio.FIRST_COMPLETED)
            if not ready.done():
                why = "it has ended" if gone is not None and gone.done() else f"nothing for {START_SECONDS:g} s"
                lacks = place.gone is not None and place.gone.is_set() and place.exit_code() == PACKAGES_MISSING
                told = f"no driver answers at {place.target}: {why}. {place.last_lines()}".strip()
                raise DriverElsewhere(told) if lacks else DriverAbsent(told)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _check(self, session: Session) -> list[Result]:
        checks = self.selection.of([*BEFORE, *works_checks(session), *features_checks(session), *AFTER])
        results: dict[str, Result] = {}
        for check in checks:
            if check in end.CHECKS:
                await self._clean(session)  # nothing answers after these
            result = await self._one(session, check, results)
            results[check.id] = result
            self.tell(result)
        await self._clean(session)
        return list(results.values())

    async def _one(self, session: Session, check: Check, results: Mapping[str, Result]) -> Result:
        begin = time.monotonic()

        def result(outcome: Outcome, *, blocked: bool = False, **told: str) -> Result:
            return Result(check.id, check.title, outcome, time.monotonic() - begin, blocked=blocked, **told)

        for needed in (*needs_of(check), *check.after):
            before = results.get(needed)
            if before is None or before.outcome is Outcome.PASSED:
                continue
            failed = before.blocked or before.outcome is Outcome.FAILED
            if failed or needed not in check.after:
                told = "failed" if before.outcome is Outcome.FAILED else "was skipped"
                return result(Outcome.SKIPPED, reason=f"needs {needed}, which {told}", blocked=failed)
        found = None
        for _ in range(MOST_TRIES):
            async with Stillness() as still:
                tried = await self._tried(session, check, result)
            if tried.outcome is not Outcome.FAILED:
                return tried
            found = found or tried
            if not still.much or check in end.CHECKS:  # from which there is no way back
                break
            log.info("%s failed while this machine stood still: it is made again", check.id)
            session.run_ends.clear()
        assert found is not None
        return found

    async def _tried(self, session: Session, check: Check, result: Callable[..., Result]) -> Result:
        try:
            async with asyncio.timeout(self.timeout * CHECK_CALLS):
                if check.attached is not None:
                    await session.bring(check.attached)
                await check.run(session)
        except Skipped as reason:
            return result(Outcome.SKIPPED, reason=str(reason))
        except Failed as failed:
            return result(Outcome.FAILED, sent=failed.sent, came=failed.came, todo=failed.todo or check.todo)
        except TimeoutError:
            came = f"the check did not end within {self.timeout * CHECK_CALLS:g} s"
            return result(Outcome.FAILED, sent=check.title, came=came, todo=check.todo)
        except Exception as error:  # whatever a driver sends must not end the run
            log.debug("%s broke off", check.id, exc_info=error)
            came = f"an answer that the kit cannot read: {type(error).__name__}: {shortened(str(error))}"
            return result(Outcome.FAILED, sent=check.title, came=came, todo=check.todo)
        return result(Outcome.PASSED)

    async def _clean(self, session: Session) -> None:
        """Removes what the kit has made in the backend, as far as that goes."""
        calls, session.cleaning = session.cleaning, []
        with contextlib.suppress(Failed):
            if calls:
                await session.bring(True)
            for method, request in reversed(calls):
                answer = await session.call(method, request)
                if not answer.ok:
                    log.warning("%s, which removes what the kit has made: %s", method, answer)

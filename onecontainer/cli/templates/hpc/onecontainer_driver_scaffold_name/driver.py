"""What the gateway calls: messages in, messages out."""

from __future__ import annotations

import math

from onecontainer.driver import Attachment, Context, Driver, ProbeResult, errors
from onecontainer_driver_scaffold_name import montecarlo
from onecontainer_driver_scaffold_name import scaffold_name_pb2 as pb

MAX_COEFFICIENTS = 100
MAX_POINTS = 10**12


class ScaffoldNameDriver(Driver):
    """Serves `scaffold_name.v1.ScaffoldNameService`. A handler's name is the method's, in snake case."""

    services = (pb.DESCRIPTOR.services_by_name["ScaffoldNameService"],)

    _block_size: int | None = None

    def attach(self, attachment: Attachment) -> None:
        size = attachment.options["block_size"]
        if size < 1:
            raise errors.FieldInvalid("options.block_size", "must be at least 1")
        self._block_size = size

    def detach(self) -> None:
        self._block_size = None

    def probe(self) -> ProbeResult:
        # With a backend, a cluster say: ask it, each time.
        if montecarlo.integral([0.0, 2.0], 0.0, 1.0) != 1.0:
            raise errors.BackendExecutionFailed("the computation is wrong")
        return ProbeResult(ready=True, backend_version="1")

    async def integrate(self, request: pb.IntegrateRequest, context: Context) -> pb.IntegrateResponse:
        wanted = _checked(request)
        value = montecarlo.integral(wanted.coefficients, wanted.lower, wanted.upper)
        if not math.isfinite(value):
            raise errors.DataInvalid("integral", "is too large for a double")
        return pb.IntegrateResponse(value=value)

    def simulate(self, request: pb.SimulateRequest, context: Context) -> pb.SimulateResult:
        """Blocks, so it is a plain `def`: it runs in a thread of its own, and looks whether to stop."""
        wanted = _checked(request)
        if not 1 <= request.points <= MAX_POINTS:
            raise errors.FieldInvalid("points", "must be 1 to 10^12")
        if self._block_size is None:
            raise errors.NotAttached("the driver is not attached to a service")
        sums = _where_the_last_attempt_stopped(context)
        while sums.points < request.points and not context.finishing:
            if context.cancelled:
                raise errors.Cancelled("stopped between two blocks; nothing is kept")
            sums = montecarlo.next_block(
                sums,
                wanted.coefficients,
                wanted.lower,
                wanted.upper,
                seed=request.seed,
                points=min(self._block_size, request.points - sums.points),
            )
            state = pb.SimulateProgress(points=sums.points, sum=sums.total, sum_of_squares=sums.squares)
            context.progress(sums.points, request.points, unit="points", details=state)
            context.checkpoint(state)
        value, error = sums.estimate(wanted.lower, wanted.upper)
        return pb.SimulateResult(value=value, standard_error=error, points=sums.points)


def _checked(request: pb.IntegrateRequest | pb.SimulateRequest) -> pb.Integral:
    if not request.HasField("integral"):
        raise errors.FieldRequired("integral")
    wanted = request.integral
    if not 1 <= len(wanted.coefficients) <= MAX_COEFFICIENTS:
        raise errors.FieldInvalid("integral.coefficients", f"must be 1 to {MAX_COEFFICIENTS}")
    for index, coefficient in enumerate(wanted.coefficients):
        if not math.isfinite(coefficient):
            raise errors.FieldInvalid(f"integral.coefficients[{index}]", "must be finite")
    if not (math.isfinite(wanted.lower) and math.isfinite(wanted.upper) and wanted.lower < wanted.upper):
        raise errors.FieldInvalid("integral.upper", "must be above `lower`, both finite")
    return wanted


def _where_the_last_attempt_stopped(context: Context) -> montecarlo.Sums:
    """The checkpoint of an attempt that was lost; nothing done in the first one."""
    state = pb.SimulateProgress()
    if context.job is not None and context.job.resume_details is not None:
        context.job.resume_details.Unpack(state)
    return montecarlo.Sums(state.points, state.sum, state.sum_of_squares)

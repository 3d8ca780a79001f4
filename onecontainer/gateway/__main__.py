"""`python -m onecontainer.gateway`: a gateway in the foreground, set by ONECONTAINER_… variables. For people there is `oca up`."""

from __future__ import annotations

import asyncio
import sys

from pydantic import ValidationError

from onecontainer.errors import OneContainerError
from onecontainer.gateway.app import serve
from onecontainer.gateway.logs import configure
from onecontainer.settings import Settings


def main() -> int:
    """Runs until SIGTERM. Returns the exit code: 0 after a drain, 1 if it could not start."""
    try:
        settings = Settings()
        configure(settings.log_level, settings.log_format)
        asyncio.run(serve(settings, ready=lambda address: print(f"listening on {address}", flush=True)))  # noqa: T201
    except (ValidationError, OneContainerError, ValueError, PermissionError) as error:
        print(error, file=sys.stderr)  # noqa: T201
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())

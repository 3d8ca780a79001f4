"""Started as `python -P -m onecontainer_driver_torchhub.process.inspection`: prints what PyTorch is here, as JSON."""

from __future__ import annotations

import json

import torch  # pyright: ignore[reportMissingImports]

if __name__ == "__main__":
    devices = [*(["cuda"] if torch.cuda.is_available() else []), "cpu"]
    print(json.dumps({"version": torch.__version__, "devices": devices}))  # noqa: T201 - it is what this is for

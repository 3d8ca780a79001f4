"""oneContainer driver for inference servers that speak the Open Inference Protocol."""

from onecontainer_driver_oip.driver import OipDriver

__all__ = ["OipDriver"]

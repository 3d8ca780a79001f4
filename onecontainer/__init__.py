"""oneContainer: one typed gRPC API for the software that runs in your containers."""

__version__ = "0.1.0"

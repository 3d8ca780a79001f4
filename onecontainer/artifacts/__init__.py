"""Artifacts: bytes too large for a message, with a name and a digest."""

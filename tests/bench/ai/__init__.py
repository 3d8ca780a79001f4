"""make bench-ai: one classifier behind everything that serves models."""

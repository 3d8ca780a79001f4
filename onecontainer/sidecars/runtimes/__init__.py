"""Where sidecars run, one module per runtime."""

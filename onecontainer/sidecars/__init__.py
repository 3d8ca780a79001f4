"""Running drivers: the supervisor, the states of a sidecar, and the runtimes in which they live."""

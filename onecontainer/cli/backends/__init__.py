"""Backends on request: containers of this host, and the services that are registered for them."""

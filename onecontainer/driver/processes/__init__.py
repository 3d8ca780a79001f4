"""Handlers in processes that can be killed: `isolation: process`, declared by `@isolated`.

    sidecar ──spawns──► warden ──forks, execs──► child: the driver once more, one handler at a time ──► what the handler starts
            ◄────────────── frames ────────────►

The child is a fresh interpreter, never a fork of the sidecar, whose gRPC threads would not survive that. The warden ends the child and
all that comes of it: when it is told to, when the child ends, and when the sidecar ends in whatever way. docs/adr/0011 says why.
"""

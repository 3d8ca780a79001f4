"""The root command."""

from __future__ import annotations

import click

from onecontainer.cli.lazy import LazyGroup
from onecontainer.cli.options import connection_options

COMMANDS = {
    "up": ("onecontainer.cli.up:up", "Start the gateway."),
    "down": ("onecontainer.cli.up:down", "Stop the gateway; running work is drained."),
    "status": ("onecontainer.cli.status:status", "Gateway, services, sidecars and queue at a glance."),
    "doctor": ("onecontainer.cli.doctor:doctor", "Check this machine, and say what to do about what is missing."),
    "demo": ("onecontainer.cli.demo:demo", "Classify a photo, transcode a clip, write and read rows."),
    "service": ("onecontainer.cli.service:service", "Register backends and look after them."),
    "driver": (
        "onecontainer.cli.driver:driver",
        "See which drivers there are and which fit; install and make new ones.",
    ),
    "sidecar": ("onecontainer.cli.sidecar:sidecar", "See running drivers and their logs."),
    "backend": ("onecontainer.cli.backend:backend", "Start software as containers of this host, and register it."),
    "worker": ("onecontainer.cli.worker:worker", "Take jobs for a driver that takes none by itself."),
    "job": ("onecontainer.cli.job:job", "Create, watch, cancel and repeat jobs."),
    "artifact": ("onecontainer.cli.artifact:artifact", "Upload, download and delete files."),
    "ai": ("onecontainer.cli.ai:ai", "Ask models, and serve them."),
    "db": ("onecontainer.cli.db:db", "Tables and records."),
    "media": ("onecontainer.cli.media:media", "Probe and transcode media."),
    "call": ("onecontainer.cli.call:call", "Call any method with JSON, found by reflection."),
    "completion": ("onecontainer.cli.completion:completion", "Print the completion script of a shell."),
}


@click.group(
    cls=LazyGroup,
    lazy=COMMANDS,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
    epilog="""Environment: ONECONTAINER_ADDRESS, ONECONTAINER_TOKEN, ONECONTAINER_CA_FILE, ONECONTAINER_OUTPUT,
ONECONTAINER_TIMEOUT and ONECONTAINER_DATA_DIR stand for the options of those names.

Exit codes: 0 done; 1 it failed; 2 the command or its input is wrong; 3 not found; 4 unavailable, try again later;
5 out of time; 130 interrupted.""",
)
@click.version_option(package_name="onecontainer", prog_name="oca")
@connection_options
def cli(**_options: object) -> None:
    """One typed API for the software in your containers: AI, databases, media.

    \b
    First steps:
      oca demo                              see it work, from nothing
      oca up --detach                       start a gateway
      oca service create cats --app onnx    register a backend; its driver starts beside it
      oca ai predict cats photo.jpg         call it
      oca status                            see what is there
      oca down                              stop the gateway

    Each command has its own --help with examples.
    """

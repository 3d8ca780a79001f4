"""`oca driver`: installed drivers, and making new ones."""

from __future__ import annotations

from typing import Any

import click
from google.protobuf import json_format

from onecontainer.api.driver.v1 import driver_pb2
from onecontainer.api.management.v1 import resources_pb2
from onecontainer.cli.check import check
from onecontainer.cli.driver_build import build
from onecontainer.cli.driver_install import install, pack, uninstall
from onecontainer.cli.driver_new import new
from onecontainer.cli.render import enum_name
from onecontainer.cli.service import show_match
from onecontainer.cli.session import Session, connected
from onecontainer.client.names import filter_of, short_name


@click.group()
def driver() -> None:
    """See which drivers there are and which fit; install and make new ones.

    \b
    Examples:
      oca driver new my-driver --scope hpc
      oca driver install my-driver
      oca driver list
      oca driver get onnx-0.1.0
      oca driver match --app cassandra --app-version 5.0
      oca driver check ./drivers/sql
    """


for command in (check, install, uninstall, pack, new, build):
    driver.add_command(command)


def state_of(found: Any) -> str:
    return enum_name(resources_pb2.DriverState, found.state)


@driver.command("list")
@click.option("--app", default="", help="Only for this app.")
@click.option("--scope", default="", help="Only of this scope: ai, db, media, hpc.")
@connected
def list_(session: Session, app: str, scope: str) -> None:
    """List drivers, broken ones too."""
    found = session.client.drivers.list(filter=filter_of({"app": app, "scope": scope}), timeout=session.timeout)
    session.screen.messages(
        found,
        {
            "name": lambda d: short_name(d.name),
            "state": state_of,
            "app": lambda d: f"{d.manifest.app} {d.manifest.app_version}".strip(),
            "scope": lambda d: d.manifest.scope,
            "source": lambda d: enum_name(resources_pb2.DriverSource, d.source).lower(),
            "services": lambda d: len(d.services),
            "digest": lambda d: d.digest.removeprefix("sha256:")[:12],
            "description": lambda d: " ".join((d.error.message or d.manifest.description).split()),
        },
    )


@driver.command()
@click.argument("name")
@connected
def get(session: Session, name: str) -> None:
    """Show a driver: its options and its methods."""
    found = session.client.drivers.get(name, timeout=session.timeout)
    manifest = found.manifest
    session.screen.message(
        found,
        {
            "name": found.name,
            "state": state_of(found),
            "error": found.error.message,
            "description": manifest.description,
            "app": f"{manifest.app} {manifest.app_version}".strip(),
            "scope": manifest.scope,
            "source": enum_name(resources_pb2.DriverSource, found.source).lower(),
            "origin": found.origin,
            "digest": found.digest,
            "used by": list(found.services),
        },
    )
    if session.screen.is_json:
        return
    if manifest.options:
        session.screen.say("")
        session.screen.rows([option_row(option) for option in manifest.options])
    session.screen.say("")
    session.screen.rows(
        [
            {
                "method": method.name,
                "job": method.long_running,
                "idempotent": method.idempotent,
                "streams": "both ways"
                if method.client_streaming and method.server_streaming
                else "in"
                if method.client_streaming
                else "out"
                if method.server_streaming
                else "",
            }
            for method in found.methods
        ]
    )


def option_row(option: driver_pb2.DriverOption) -> dict[str, object]:
    default = json_format.MessageToJson(option.default_value) if option.HasField("default_value") else ""
    if option.type == driver_pb2.OPTION_TYPE_INT:
        default = default.removesuffix(".0")  # a JSON number is a double
    return {
        "option": option.name,
        "type": enum_name(driver_pb2.OptionType, option.type).lower(),
        "default": "required" if option.required else default,
        "description": option.description,
    }


@driver.command()
@click.argument("service", default="")
@click.option("--app", default="", help="Instead of a service: the app.")
@click.option("--app-version", default="", help="And its version.")
@connected
def match(session: Session, service: str, app: str, app_version: str) -> None:
    """Show which drivers fit a SERVICE, or an app, and why the others do not."""
    if bool(service) == bool(app):
        raise click.UsageError("give either a SERVICE or --app")
    answer = session.client.services.match_drivers(service, app=app, app_version=app_version, timeout=session.timeout)
    show_match(session, answer)

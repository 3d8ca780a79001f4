"""`oca worker`: jobs for a driver that takes none by itself."""

from __future__ import annotations

import asyncio
import signal
from pathlib import Path

import click

from onecontainer.cli.options import DURATION, FILE, TARGET, data_dir_option
from onecontainer.cli.process import note_of, settings_of
from onecontainer.client.names import full_name
from onecontainer.errors import CredentialsInvalid, FieldInvalid, StateInvalid
from onecontainer.settings import Settings, is_loopback


@click.command()
@click.argument("service")
@click.option(
    "--driver", type=TARGET, required=True, metavar="TARGET", help="Where the driver listens: HOST:PORT or unix:PATH."
)
@click.option("--driver-token-file", type=FILE, help="File with the driver's instance token. Default: it needs none.")
@click.option(
    "--driver-ca-file", type=FILE, help="CA of the driver's certificate; needed beyond loopback. Default: no TLS."
)
@click.option("--slots", type=click.IntRange(1, 1000), help="Jobs to run at once. Default: what the driver says.")
@click.option(
    "--drain-timeout",
    type=DURATION,
    default="10s",
    show_default=True,
    help="What running jobs get to end when this is stopped; then they are given back.",
)
@data_dir_option
@click.option(
    "--gateway",
    type=TARGET,
    metavar="TARGET",
    help="The gateway's internal listener. Default: that of the gateway that runs on the data folder.",
)
@click.option(
    "--gateway-ca-file",
    type=FILE,
    help="CA of its certificate; needed beyond loopback. Default: no TLS, or ca/ca.pem in the data folder.",
)
@click.option(
    "--registration-token-file",
    type=FILE,
    help="The gateway's registration token. Default: the one in the data folder.",
)
@click.option(
    "--secrets-dir",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="Folder with the broker's secrets. Default: the one in the data folder.",
)
@click.option("--log-level", type=click.Choice(["debug", "info", "warning", "error"]), help="Default: info.")
def worker(
    service: str,
    driver: str,
    driver_token_file: Path | None,
    driver_ca_file: Path | None,
    slots: int | None,
    drain_timeout: float,
    data_dir: Path | None,
    gateway: str | None,
    gateway_ca_file: Path | None,
    registration_token_file: Path | None,
    secrets_dir: Path | None,
    log_level: str | None,
) -> None:
    """Take jobs of SERVICE and have a driver beside it run them.

    For drivers that are not made with our SDK and take no jobs by themselves: a program in any language that serves DriverService.
    It is attached by the service's runtime.endpoint, which is where sync calls go; this command brings it the jobs, by
    DriverService.Run. Several may work for one service. On SIGTERM or Ctrl-C it takes no more jobs
    and gives what runs --drain-timeout to end; then that is given back, without counting as an attempt (a method that does not
    declare idempotency_level ends as OUTCOME_UNKNOWN instead). Ctrl-C also tells what runs. A second signal waits no longer.

    \b
    Examples:
      oca worker movies --driver 127.0.0.1:7000
      oca worker movies --driver unix:/run/movies.sock --slots 4 --drain-timeout 5m
      oca worker movies --driver 127.0.0.1:7000 --gateway 10.0.0.5:50052 --gateway-ca-file ca.pem --registration-token-file token
    """
    settings = settings_of(
        data_dir, log_level=log_level, registration_token_file=registration_token_file, secrets_dir=secrets_dir
    )
    # Imported here: the usage must not wait for grpc.
    from onecontainer.driver.beside import BesideWorker, Place
    from onecontainer.gateway.logs import configure

    configure(settings.log_level, settings.log_format)
    target = _internal_target(gateway, settings)
    its_ca = settings.ca_dir / "ca.pem"
    if gateway_ca_file is None and its_ca.is_file() and not is_loopback(target):
        gateway_ca_file = its_ca
    _refuse_plaintext("--gateway", target, gateway_ca_file, "a copy of ca/ca.pem in the gateway's data folder")
    _refuse_plaintext("--driver", driver, driver_ca_file, "the authority that signed its certificate")
    there = Place(target, _text_of(settings.registration_token_file), gateway_ca_file)
    token = None if driver_token_file is None else _text_of(driver_token_file)

    async def work() -> None:
        beside = BesideWorker(
            full_name("services", service),
            Place(driver, token, driver_ca_file),
            there,
            slots=slots or 0,
            drain_timeout=drain_timeout,
            secrets_dir=settings.secrets_dir,
            max_message_bytes=settings.max_message_bytes,
            say=click.echo,
        )

        def interrupted() -> None:
            running = beside.lines()
            click.echo("\n".join([f"stopping; {len(running)} running", *running]))
            beside.ask_to_stop()

        loop = asyncio.get_running_loop()
        loop.add_signal_handler(signal.SIGTERM, beside.ask_to_stop)
        loop.add_signal_handler(signal.SIGINT, interrupted)
        await beside.run()

    try:
        asyncio.run(work())
    except CredentialsInvalid as error:
        # Neither is the token of a caller, which is what this error is about elsewhere. Only our gateway says that it is one.
        if error.hop == "gateway":
            error.add_note("Give the gateway's registration token: --registration-token-file.")
        else:
            error.add_note("Give the driver's instance token: --driver-token-file.")
        raise
    click.echo("stopped")


def _internal_target(gateway: str | None, settings: Settings) -> str:
    if gateway is not None:
        return gateway
    note = note_of(settings.data_dir)
    # Where it will listen, if it is not up yet: either may be started first.
    return note.internal_address if note is not None else settings.internal_listen


def _refuse_plaintext(option: str, target: str, ca_file: Path | None, what: str) -> None:
    """Tokens and jobs go beyond this host over TLS only."""
    if ca_file is None and not is_loopback(target):
        raise FieldInvalid(option, f"{target} is not on loopback: give {option}-ca-file, {what}")


def _text_of(path: Path) -> str:
    try:
        text = path.read_text().strip()
    except FileNotFoundError:
        raise StateInvalid(
            f"there is no {path}: the gateway makes it at its first start; give --data-dir, or --registration-token-file"
        ) from None
    if not text:
        raise FieldInvalid("", f"{path} is empty")
    return text

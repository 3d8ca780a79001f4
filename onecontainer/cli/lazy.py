"""Groups whose commands are imported when they are called, and the one place where errors become exit codes."""

from __future__ import annotations

import importlib
import json
from collections.abc import Mapping
from typing import Any

import click
from click.shell_completion import CompletionItem

EXIT_INTERRUPTED = 130


def usage_as_dict(error: click.UsageError) -> dict[str, object]:
    """A command that is used wrongly, for programs: in the form of the gateway's errors."""
    return {
        "reason": "FIELD_INVALID",
        "code": "INVALID_ARGUMENT",
        "message": error.format_message(),
        "violations": [],
        "metadata": {"command": error.ctx.command_path} if error.ctx is not None else {},
        "retry_after": None,
    }


class LazyGroup(click.Group):
    """A group of commands known by their import path and one line of help.

    Args:
        lazy: command name → (`module:attribute`, one line of help).
    """

    def __init__(self, *args: Any, lazy: Mapping[str, tuple[str, str]], **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._lazy = lazy

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self._lazy)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in self._lazy:
            return None
        module, _, attribute = self._lazy[cmd_name][0].partition(":")
        command = getattr(importlib.import_module(module), attribute)
        assert isinstance(command, click.Command)
        return command

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[CompletionItem]:
        # click's own would import each command to see whether it is hidden.
        found = [
            CompletionItem(name, help=text) for name, (_path, text) in self._lazy.items() if name.startswith(incomplete)
        ]
        return found + click.Command.shell_complete(self, ctx, incomplete)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        # click's own would import each command for its help.
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_path, text) in self._lazy.items()])

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            click.echo("Interrupted.", err=True)
            ctx.exit(EXIT_INTERRUPTED)
        except ModuleNotFoundError as error:
            package = (error.name or "onecontainer").partition(".")[0]
            if package == "onecontainer":
                raise
            click.echo(f"Error: this needs the package {package}: pip install 'onecontainer[gateway,cli]'", err=True)
            ctx.exit(1)
        except click.UsageError as error:
            if ctx.meta.get("onecontainer.output") != "json":
                raise
            click.echo(json.dumps({"error": usage_as_dict(error)}, ensure_ascii=False), err=True)
            ctx.exit(error.exit_code)
        except (click.ClickException, click.exceptions.Exit, click.Abort, BrokenPipeError):
            raise
        except Exception as error:
            # Imported here: `--help` must not wait for grpc.
            from onecontainer.cli.failures import report

            code = report(
                error,
                as_json=ctx.meta.get("onecontainer.output") == "json",
                address=ctx.meta.get("onecontainer.address", ""),
                group=ctx.find_root().invoked_subcommand or "",
            )
            if code is None:
                raise
            ctx.exit(code)

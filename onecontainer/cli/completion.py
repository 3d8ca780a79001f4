"""`oca completion`: what makes Tab know our commands."""

from __future__ import annotations

import click
from click.shell_completion import get_completion_class


@click.command()
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
@click.pass_context
def completion(ctx: click.Context, shell: str) -> None:
    """Print the completion script of a shell.

    \b
    bash:  eval "$(oca completion bash)"         (in ~/.bashrc)
    zsh:   eval "$(oca completion zsh)"          (in ~/.zshrc)
    fish:  oca completion fish | source          (in ~/.config/fish/config.fish)
    """
    kind = get_completion_class(shell)
    assert kind is not None
    click.echo(kind(ctx.find_root().command, {}, "oca", "_OCA_COMPLETE").source())

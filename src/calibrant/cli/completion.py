"""``calibrant completion``: what a shell needs to complete verbs, options and their values."""

from __future__ import annotations

import click
from click.shell_completion import BashComplete, FishComplete, ZshComplete

_KINDS = {"bash": BashComplete, "zsh": ZshComplete, "fish": FishComplete}
# Shell -> the line that takes the script up, and where it belongs.
_USE = {
    "bash": 'eval "$(calibrant completion bash)"   in ~/.bashrc',
    "zsh": 'eval "$(calibrant completion zsh)"   in ~/.zshrc, after compinit',
    "fish": "calibrant completion fish > ~/.config/fish/completions/calibrant.fish",
}


@click.command("completion", epilog="\b\n" + "\n".join(_USE.values()))
@click.argument("shell", type=click.Choice(list(_USE)))
@click.pass_context
def command(ctx: click.Context, shell: str) -> None:
    """Print the script that completes calibrant's verbs and options in SHELL."""
    kind = _KINDS[shell]
    click.echo(kind(ctx.find_root().command, {}, "calibrant", "_CALIBRANT_COMPLETE").source())

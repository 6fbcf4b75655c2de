"""``calibrant export``: a restored model as one folder that anything can serve."""

from __future__ import annotations

import click

from calibrant.cli.options import PLACE
from calibrant.cli.terminal import terminal_options


@click.command("export")
@click.argument("run", type=PLACE)
@click.argument("folder", type=PLACE)
@terminal_options
def command(run: str, folder: str) -> dict[str, str]:
    """Write the fine-tuned model in RUN to FOLDER, its adapter merged.

    \b
    calibrant export runs/restore/cft models/mine-calibrated
    """
    from calibrant.runs import load

    written = load(run).export(folder)
    click.echo(f"Written to {written}")
    return {"folder": str(written)}

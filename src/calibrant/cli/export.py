"""``calibrant export``: a restored model as one folder that anything can serve."""

from __future__ import annotations

import click


@click.command("export")
@click.argument("run")
@click.argument("folder")
def command(run: str, folder: str) -> None:
    """Write the fine-tuned model in RUN to FOLDER, its adapter merged.

    \b
    calibrant export runs/restore/cft models/mine-calibrated
    """
    from calibrant.runs import load

    click.echo(f"Written to {load(run).export(folder)}")

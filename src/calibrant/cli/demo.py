"""``calibrant demo``: the whole story on a laboratory whose truth is known."""

from __future__ import annotations

import os
import time
from typing import Any

import click

from calibrant.cli.options import output_option, seed_option
from calibrant.cli.terminal import terminal_options


@click.command("demo")
@click.option("--fast", is_flag=True, help="Under a minute, too small to show every effect.")
@click.option(
    "--workers",
    type=click.IntRange(1),
    default=min(4, os.cpu_count() or 1),
    show_default="processor cores, at most 4",
    help="Processes, one thread each.",
)
@output_option("runs/demo")
@seed_option
@terminal_options
def command(fast: bool, workers: int, output_dir: str, seed: int) -> dict[str, Any]:
    """See calibration lost by alignment and restored, in a world whose truth is known.

    A small language model is pre-trained, aligned by DPO and restored in both regimes; nothing is
    downloaded. Takes about three minutes on two cores.

    \b
    calibrant demo
    """
    import textwrap

    from rich.console import Console

    from calibrant.files import read_json
    from calibrant.lab.findings import results_table, words
    from calibrant.lab.page import write_page
    from calibrant.lab.story import CHAPTERS, DEMO, FAST, LabSettings, Story, tell

    console = Console(highlight=False)

    def say(story: Story, chapter: int) -> None:
        console.print(f"\n{chapter + 1}. {CHAPTERS[chapter]}", style="bold", markup=False)
        width = min(console.width, 96)
        console.print("\n".join(textwrap.wrap(words(story, chapter), width)), markup=False)

    start = time.perf_counter()
    settings = LabSettings(seed=seed, **(FAST if fast else DEMO))
    story = tell(settings, output_dir, workers=workers, say=say)
    write_page(story, time.perf_counter() - start)
    console.print()
    console.print(results_table(story, intervals=False).to_rich())
    click.echo(f"Written to {output_dir}: report.html (open it in a browser), report.md, figures/,")
    click.echo("questions/ and one folder per model, for example:")
    click.echo(f"  calibrant compare {output_dir}/dpo-0.1 {output_dir}/cft")
    numbers: dict[str, Any] = read_json(story.folder / "report.json")
    return numbers | {"output_dir": output_dir}

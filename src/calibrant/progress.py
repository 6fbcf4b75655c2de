"""What long work says on standard error: one progress bar for all of it, and notes."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Protocol

from calibrant.errors import printable

_HUSHED = ContextVar("hushed", default=False)


@contextmanager
def hushed() -> Iterator[None]:
    """Show no bars and no notes while the block runs."""
    token = _HUSHED.set(True)
    try:
        yield
    finally:
        _HUSHED.reset(token)


def note(text: str) -> None:
    """Tell the person at the terminal, on standard error."""
    if not _HUSHED.get():
        print(printable(text), file=sys.stderr, flush=True)


class Advance(Protocol):
    """Called with the number of units just done."""

    def __call__(self, done: int) -> None:
        """Move the bar on."""


@contextmanager
def progress(title: str, total: int, unit: str, *, show: bool = True) -> Iterator[Advance]:
    """Show a bar while the block runs; it yields a function that moves the bar on.

    Parameters
    ----------
    title, unit : what is being done, and what is counted.
    total : units in all.
    show : False draws nothing, and so does `hushed`.
    """
    if not show or _HUSHED.get():
        yield lambda done: None
        return
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        Progress,
        ProgressColumn,
        Task,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )
    from rich.text import Text

    class Rate(ProgressColumn):
        def render(self, task: Task) -> Text:
            speed = task.finished_speed or task.speed
            return Text("" if speed is None else f"{speed:,.1f} {unit}/s")

    columns = (
        TextColumn("{task.description}"),
        BarColumn(bar_width=24),
        TextColumn("{task.completed:,.0f}/{task.total:,.0f}"),
        Rate(),
        TextColumn("elapsed"),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True), speed_estimate_period=120) as bar:
        task = bar.add_task(title, total=total)
        yield lambda done: bar.advance(task, done)

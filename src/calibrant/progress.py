"""What long work says on standard error: one progress bar for all of it, and notes."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Protocol

from calibrant.errors import printable

_HUSHED = ContextVar("hushed", default=False)
_STEPS: ContextVar[Callable[[int], None]] = ContextVar("steps", default=lambda done: None)
_MOMENT = 1.0  # seconds of measuring that need no bar


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
def measuring(title: str, steps: int, *, show: bool = True) -> Iterator[None]:
    """Show a bar if the block takes more than a moment, moved on by every `step` within it.

    Measuring has loops deep inside; this way they need not know who watches.

    Parameters
    ----------
    title : what is being done. steps : that the block will take, in all.
    """
    left = steps
    with progress(title, steps, "steps", show=show, after=_MOMENT) as advance:

        def move(done: int) -> None:
            nonlocal left
            done = min(done, left)
            left -= done
            advance(done)

        token = _STEPS.set(move)
        try:
            yield
        finally:
            _STEPS.reset(token)
        move(left)


def step(done: int = 1) -> None:
    """Tell the `measuring` around this, if there is one, that so many steps are done."""
    _STEPS.get()(done)


@contextmanager
def progress(
    title: str, total: int, unit: str, *, show: bool = True, after: float = 0.0
) -> Iterator[Advance]:
    """Show a bar while the block runs; it yields a function that moves the bar on.

    Parameters
    ----------
    title, unit : what is being done, and what is counted.
    total : units in all.
    show : False draws nothing, and so does `hushed`.
    after : seconds before which none is shown.
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
    begin = time.monotonic()
    bar = Progress(*columns, console=Console(stderr=True), speed_estimate_period=120)
    task = bar.add_task(title, total=total)

    def move(done: int) -> None:
        bar.advance(task, done)
        if time.monotonic() - begin >= after:
            bar.start()

    try:
        move(0)
        yield move
    finally:
        if bar.live.is_started:
            bar.stop()

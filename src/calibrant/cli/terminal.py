"""How every verb speaks: to a person, to nobody (``--quiet``), or to a script (``--json``)."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable, Iterator
from functools import wraps
from typing import Any, TypeVar

import click

from calibrant.files import json_text
from calibrant.progress import hushed

F = TypeVar("F", bound=Callable[..., Any])
# Libraries read these when they are imported: no bars, no advice.
_SILENT = {"HF_HUB_DISABLE_PROGRESS_BARS": "1", "TRANSFORMERS_VERBOSITY": "error"}


def terminal_options(function: F) -> F:
    """Add ``--quiet`` and ``--json``; the function returns what ``--json`` prints.

    Standard output belongs to the result. With ``--json`` whatever else is printed, by us or by a
    library, goes to standard error; with ``--quiet`` it goes nowhere, and bars and notes with it.
    Errors are always shown.
    """

    @wraps(function)
    def command(*args: Any, quiet: bool, as_json: bool, **options: Any) -> None:
        with _speaking(quiet=quiet, as_json=as_json):
            result = function(*args, **options)
        if as_json and result is not None:
            click.echo(json_text(result))

    for option in (
        click.option(
            "--json", "as_json", is_flag=True, help="Print the result as JSON, and nothing else."
        ),
        click.option("--quiet", "-q", is_flag=True, help="Print nothing but errors (and --json)."),
    ):
        command = option(command)
    return command  # type: ignore[return-value]


@contextlib.contextmanager
def _speaking(*, quiet: bool, as_json: bool) -> Iterator[None]:
    with contextlib.ExitStack() as stack:
        if quiet:
            sink = stack.enter_context(open(os.devnull, "w", encoding="utf-8"))
            stack.enter_context(contextlib.redirect_stdout(sink))
            stack.enter_context(hushed())
            stack.enter_context(_environment(_SILENT))
        elif as_json:
            stack.enter_context(contextlib.redirect_stdout(sys.stderr))
        yield


@contextlib.contextmanager
def _environment(values: dict[str, str]) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value

"""The errors a user can cause: bad input, and a training that diverges."""

from __future__ import annotations

import reprlib
import unicodedata


class InputError(ValueError):
    """Something the user supplied is wrong: the message says what, where and what was expected.

    The command line prints it without a traceback and exits with 1. Raised for files, rows,
    options, probabilities and models; programming errors keep Python's own types.
    """


class NonFiniteLossError(RuntimeError):
    """The training loss became NaN or infinite; the weights of the last checkpoint are intact."""


def shown(value: object) -> str:
    """Write a value for a message: at most 60 characters of it, and no deeper than six levels.

    Examples
    --------
    >>> shown(["a", 1]), shown([[[[[[[[1]]]]]]]])
    ("['a', 1]", '[[[[[[[...]]]]]]]')
    """
    text = _SHORT.repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def printable(text: str) -> str:
    """Write control characters as escapes, but for line feeds: no text may steer a terminal.

    Examples
    --------
    >>> print(printable("q.csv: column \x1b[2Jid"))
    q.csv: column \\x1b[2Jid
    """
    return "".join(
        c if c == "\n" or unicodedata.category(c) not in ("Cc", "Cf", "Cs") else ascii(c)[1:-1]
        for c in text
    )


def reason(error: BaseException) -> str:
    """Give what another package's error says, on one line of at most 300 characters.

    Examples
    --------
    >>> reason(OSError("no route\\nto host"))
    'no route to host'
    """
    return " ".join(str(error).split())[:300]


_SHORT = reprlib.Repr()
_SHORT.maxstring = _SHORT.maxother = _SHORT.maxlong = 100

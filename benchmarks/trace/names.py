"""Check of names against the names that exist."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches


def check_names(argument: str, given: Iterable[str], there: Iterable[str]) -> None:
    """Raise an error for the first name that does not exist.

    Args:
        argument: Name of the argument, for the message.
        given: Names to check.
        there: Names that exist.

    Raises:
        ValueError: A name does not exist. The message has the name, the most similar one, and all that exist.

    >>> check_names("tasks", ["FOMC", "Py15"], ["FOMC", "Py150"])
    Traceback (most recent call last):
    ...
    ValueError: tasks: there is no 'Py15'. Did you mean 'Py150'? There are: FOMC, Py150.
    """
    known = list(there)
    for name in given:
        if name not in known:
            near = get_close_matches(str(name), known, n=1)
            hint = f" Did you mean {near[0]!r}?" if near else ""
            raise ValueError(f"{argument}: there is no {name!r}.{hint} There are: {', '.join(known)}.")

"""The one kind of error a user's input may cause.

Everything a person can get wrong (a parameter, a file, a folder) is raised as `InputError`. Entry points print its
message as a single sentence and exit with 2; every other exception is a bug and keeps its traceback.
"""

import difflib
from collections.abc import Iterable


class InputError(ValueError):
    """Bad input. The message is one sentence: the file or key, its value, and what to do about it."""


def known_names(word: str, known: Iterable[str]) -> str:
    """What a wrong word was meant to be, and what there is, as the end of a message."""
    known = list(known)
    close = difflib.get_close_matches(word, known, n=1, cutoff=0.5)
    return (f"did you mean {close[0]!r}? " if close else "") + f"Known are {', '.join(known)}."

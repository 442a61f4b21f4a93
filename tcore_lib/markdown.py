"""Tables as markdown: the one writer behind README, `results/` and the benchmark page."""

from collections.abc import Iterable, Sequence
from typing import Any


def table(head: Sequence[Any], rows: Iterable[Iterable[Any]], *, right: Sequence[int] = ()) -> str:
    """A table, without a final newline.

    Args:
        head: the columns' names.
        rows: their cells; a bar inside a cell is escaped.
        right: numbers of the columns that stand to the right.
    """
    rules = ["---:" if column in right else "---" for column in range(len(head))]
    return "\n".join(_line(line) for line in (head, rules, *rows))


def _line(cells: Iterable[Any]) -> str:
    return "| " + " | ".join(str(cell).replace("|", r"\|") for cell in cells) + " |"

"""Tables of text."""

from collections.abc import Collection, Sequence


def align(rows: Sequence[Sequence[str]], left: Collection[int] = ()) -> str:
    """Returns rows as lines with aligned columns.

    Args:
        rows: of equally many cells.
        left: numbers of the columns that are aligned to the left; all others
            are to the right.
    """
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]

    def line(row):
        cells = (
            cell.ljust(width) if number in left else cell.rjust(width)
            for number, (cell, width) in enumerate(
                zip(row, widths, strict=True)
            )
        )
        return "  ".join(cells).rstrip()

    return "\n".join(map(line, rows))

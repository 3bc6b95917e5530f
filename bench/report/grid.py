"""One table, shown four ways: Markdown, LaTeX, a terminal, and (in `page.py`) a page.

The text of a cell comes from files that anybody may have written, so each rendering escapes it.
"""

import html
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd
from rich.console import Console, ConsoleOptions, JustifyMethod, RenderableType, RenderResult
from rich.measure import Measurement
from rich.table import Table as RichTable
from rich.text import Text

NOTHING = "–"
Row = Mapping[str, Any]


@dataclass(frozen=True)
class Cell:
    """A text, and the number behind it."""

    text: str
    value: float | None = None
    """In the unit of its column; the page sorts by it."""
    source: str | None = None
    """Of the number, in words."""


@dataclass(frozen=True)
class Grid:
    """A table for people. The first column names its row."""

    title: str
    caption: str
    header: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]
    notes: tuple[str, ...] = ()
    numeric: bool = True
    """Whether the columns after the first hold numbers, to be set flush right."""


def significant(value: float) -> str:
    """Three significant digits, never in powers of ten, thousands apart."""
    if value == 0 or not math.isfinite(value):
        return f"{value:g}"
    decimals = max(0, 2 - math.floor(math.log10(abs(value))))
    return f"{value:,.{decimals}f}"


def as_rows(table: pd.DataFrame) -> list[Row]:
    """The rows of a data frame, by the names of its columns."""
    return [{str(name): value for name, value in row.items()} for row in table.to_dict("records")]


def one_line(text: object) -> str:
    """Foreign text without line ends, control characters and terminal escapes."""
    return " ".join("".join(c if c.isprintable() else " " for c in str(text)).split())


def markdown(grid: Grid) -> str:
    header, *rows = [[_markdown_escape(cell) for cell in row] for row in _texts(grid)]
    rule = ["---", *["--:" if grid.numeric else "---"] * (len(header) - 1)]
    lines = [
        f"**{_markdown_escape(grid.title)}.** {_markdown_escape(grid.caption)}",
        "",
        f"| {' | '.join(header)} |",
        f"|{'|'.join(rule)}|",
        *(f"| {' | '.join(row)} |" for row in rows),
        "",
        *(f"- {_markdown_escape(note)}" for note in grid.notes),
    ]
    return "\n".join(lines).rstrip() + "\n"


def latex(grid: Grid) -> str:
    """A table for the LaTeX packages `booktabs` and, where text is long, `tabularx`."""
    header, *rows = [[_latex_escape(cell) for cell in row] for row in _texts(grid)]
    if grid.numeric:
        begin, end = rf"\begin{{tabular}}{{l{'r' * (len(header) - 1)}}}", r"\end{tabular}"
    else:
        columns = r">{\raggedright\arraybackslash}X" * len(header)
        begin, end = rf"\begin{{tabularx}}{{\textwidth}}{{{columns}}}", r"\end{tabularx}"
    caption = " ".join(_latex_escape(line) for line in (grid.caption, *grid.notes))
    lines = [
        r"\begin{table}",
        r"  \centering",
        rf"  \caption{{{caption}}}",
        f"  {begin}",
        r"    \toprule",
        f"    {' & '.join(header)} " + r"\\",
        r"    \midrule",
        *(f"    {' & '.join(row)} " + r"\\" for row in rows),
        r"    \bottomrule",
        f"  {end}",
        r"\end{table}",
    ]
    return "\n".join(lines) + "\n"


def for_terminal(grid: Grid) -> RenderableType:
    """What rich prints of a grid: whole words of all of it, in a terminal of any width."""
    return _Fitted(grid)


@dataclass(frozen=True)
class _Fitted:
    """A table; where it is too wide, several below each other, each with the first column."""

    grid: Grid

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        endless = options.update(max_width=10_000)  # a measurement is cut to the width
        parts: list[list[int]] = [[]]
        for column in range(1, len(self.grid.header)):
            wider = self._table([*parts[-1], column])
            if parts[-1] and Measurement.get(console, endless, wider).minimum > options.max_width:
                parts.append([])
            parts[-1].append(column)
        for columns in parts:
            table = self._table(columns)
            if columns is parts[0]:
                table.title = Text(one_line(self.grid.caption))
            if columns is parts[-1]:
                table.caption = Text("\n".join(map(one_line, self.grid.notes)))
            yield table

    def _table(self, columns: Sequence[int]) -> RichTable:
        """The first column and these."""
        shown = [0, *columns]
        header, *rows = ([one_line(row[index]) for index in shown] for row in _texts(self.grid))
        table = RichTable(caption_justify="left")
        for index, name in enumerate(header):
            justify: JustifyMethod = "right" if index and self.grid.numeric else "left"
            # Words stay whole, but for one that is wider than the terminal itself.
            table.add_column(Text(name), justify=justify, no_wrap=not index, overflow="fold")
        for row in rows:
            table.add_row(*map(Text, row))  # no markup: names are foreign
        return table


def _texts(grid: Grid) -> list[list[str]]:
    return [list(grid.header), *([cell.text for cell in row] for row in grid.rows)]


def _markdown_escape(text: str) -> str:
    return re.sub(
        r"([\\`|]|\](?=[(\[:])|(?<!\w)[_*]|[_*](?!\w))", r"\\\1", html.escape(one_line(text), False)
    )


_LATEX = {
    "\\": r"\textbackslash{}", "^": r"\textasciicircum{}", "~": r"\textasciitilde{}",
    "–": "--", "×": r"$\times$", "µ": r"\textmu{}", "°": r"\textdegree{}",
    "³": r"\textsuperscript{3}", "÷": r"$\div$", "≈": r"$\approx$",
    "ε": r"$\varepsilon$", "≤": r"$\le$", "≥": r"$\ge$", "λ": r"$\lambda$", "…": r"\dots{}",
    "→": r"$\to$", "±": r"$\pm$", "σ": r"$\sigma$",
    "₂": r"\textsubscript{2}", "₀": r"\textsubscript{0}", "§": r"\S{}",
    **{special: "\\" + special for special in "&%$#_{}"},
}  # fmt: skip


def _latex_escape(text: str) -> str:
    return "".join(_LATEX.get(character, character) for character in one_line(text))

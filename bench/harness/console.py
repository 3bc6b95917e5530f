"""What a person sees while a benchmark runs: a live view in a terminal, plain lines in a log."""

import time
from collections.abc import Sequence

from rich.console import Console, Group
from rich.live import Live
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.text import Text

from ..presets import Workload
from ..sizes import show_shape

_LINE_EVERY_S = 30.0  # how often a log hears of a window that goes on


class ConsoleDisplay:
    """The runner's display on a rich console; without a terminal it prints whole lines only."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.percentage:>3.0f} %"),
            TimeElapsedColumn(),
            TextColumn("{task.fields[figures]}"),
            console=console,
        )
        self._live: Live | None = None

    def __enter__(self) -> "ConsoleDisplay":
        if self.console.is_terminal:
            self._live = Live(Group(self._progress), console=self.console, refresh_per_second=8)
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._live is not None:
            self._live.stop()
            self._live = None

    def begin(self, title: str, what: str) -> None:
        """Something that lasts begins."""
        self._title = title
        self._last_line = time.monotonic()
        if self._live is None:
            self.console.print(f"{self._title}: {what}", markup=False, highlight=False)
        self._task = self._progress.add_task(
            _escape(self._title), total=1.0, figures=what, start=True
        )

    def stage(self, name: str) -> None:
        if self._live is not None:
            self._progress.update(self._task, figures=name)

    def advance(self, fraction: float, figures: str) -> None:
        """So much of it, 0 to 1, is over."""
        self._progress.update(self._task, completed=fraction, figures=figures)
        if self._live is None and time.monotonic() - self._last_line > _LINE_EVERY_S:
            self._last_line = time.monotonic()
            self.console.print(
                f"{self._title}: {fraction:.0%}, {figures}", markup=False, highlight=False
            )

    def end(self, text: str, ok: bool, notes: Sequence[str] = ()) -> None:
        self._progress.remove_task(self._task)
        self.console.print(Text(f"{self._title}: {text}", style="green" if ok else "red"))
        for line in notes:
            self.console.print(Text(f"{self._title}: {line}", style="yellow"))

    def note(self, text: str) -> None:
        self.console.print(Text(text, style="bold"))


def say(console: Console, text: str, style: str = "") -> None:
    """A line as it is: what is in it is foreign text, not markup."""
    console.print(Text(text, style=style))


def describe_work(work: Workload) -> str:
    """What a step trains on: "32³, batch 2, fp32"."""
    what = f"{show_shape(work.patch)}, batch {work.batch_size}, {work.precision}"
    parts = "slices" if work.dims == 2 else "patches"
    whole = f", {parts} of {show_shape(work.volume)}" if work.patch != work.volume else ""
    return what + whole


def _escape(text: str) -> str:
    return text.replace("[", r"\[")

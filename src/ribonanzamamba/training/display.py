"""What a person at a terminal sees of a run: a bar with loss, speed, memory and time left. Elsewhere, nothing."""

from __future__ import annotations

import logging
from contextlib import AbstractContextManager
from types import TracebackType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console


class Display(AbstractContextManager):
    """A progress bar on a terminal; without a console, or where it is no terminal, silent."""

    def __init__(self, console: Console | None = None):
        self.bar = None
        if console is not None and console.is_terminal:
            from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

            text = TextColumn("{task.description}", markup=False)
            columns = (TextColumn("step {task.fields[step]}"), BarColumn(), TaskProgressColumn(), TimeRemainingColumn())
            self.bar = Progress(*columns, text, console=console)
            self.task = self.bar.add_task("", total=1.0, step=0)

    def __enter__(self) -> Display:
        if self.bar is not None:
            self.bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.bar is not None:
            self.bar.stop()

    def advance(self, step: int, steps: int, progress: float) -> None:
        """A step is done; `progress` is the share of the run that was over before it, by steps or by time."""
        if self.bar is not None:
            self.bar.update(self.task, completed=max(progress, step / steps), step=step)

    def show(self, row: dict[str, Any]) -> None:
        """The values of a line of the log beside the bar."""
        if self.bar is not None:
            self.bar.update(self.task, description=summary(row))


def summary(row: dict[str, Any]) -> str:
    """A line of the log in a few words.

    >>> summary({"step": 20, "loss/reactivity": 0.2113, "loss/gradient_norm": 0.8, "rnas_per_second": 505.2})
    'reactivity 0.211, gradient_norm 0.8, 505 RNAs/s'
    """
    words = [f"{name.removeprefix('loss/')} {value:.3g}" for name, value in row.items() if name.startswith("loss/")]
    words.append(f"{row['rnas_per_second']:.0f} RNAs/s")
    if "memory_gib" in row:
        words.append(f"{row['memory_gib']:.1f} GiB")
    return ", ".join(words)


def log_to(console: Console) -> None:
    """Log lines to a console: above the progress bar on a terminal, plain lines elsewhere."""
    handler: logging.Handler = logging.StreamHandler(console.file)
    if console.is_terminal:
        from rich.logging import RichHandler

        handler = RichHandler(console=console, show_level=False, show_path=False, markup=False, highlighter=None)
        handler.setFormatter(logging.Formatter("%(message)s"))
    else:
        handler.setFormatter(logging.Formatter("%(asctime)s %(message)s"))
    logging.basicConfig(level=logging.INFO, handlers=[handler], force=True)

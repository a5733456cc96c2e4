"""Signals that end a run: they are noted, and the loop writes a checkpoint at the end of its step before it leaves."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

ENDING = tuple(
    getattr(signal, name) for name in ("SIGTERM", "SIGHUP", "SIGINT") if hasattr(signal, name)
)  # Windows has no SIGHUP


class Terminated(SystemExit):
    """The run was ended by a signal and has written its checkpoint; the exit code is the shell's, 128 + signal."""

    def __init__(self, number: int):
        super().__init__(128 + number)
        self.number = number


class Signals:
    """The last ending signal that came; 0: none yet."""

    def __init__(self) -> None:
        self.number = 0

    def note(self, number: int, frame: FrameType | None) -> None:
        self.number = number
        if number == signal.SIGINT:
            # whoever presses Ctrl-C twice wants the end now
            signal.signal(signal.SIGINT, signal.default_int_handler)

    def leave(self) -> None:
        """Raise what the signal means."""
        if self.number == signal.SIGINT:
            raise KeyboardInterrupt
        raise Terminated(self.number)


@contextmanager
def noted_signals() -> Iterator[Signals]:
    """Ending signals are noted while this is open. Outside the main thread Python allows no handlers: nothing is."""
    signals = Signals()
    if threading.current_thread() is not threading.main_thread():
        yield signals
        return
    before = {number: signal.signal(number, signals.note) for number in ENDING}
    try:
        yield signals
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)

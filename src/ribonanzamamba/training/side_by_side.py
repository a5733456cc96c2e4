"""Commands side by side, one a GPU at a time, each in a process and with a log of its own."""

import os
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from ribonanzamamba.training.signals import noted_signals

POLL_SECONDS = 0.2
LEAVE_SECONDS = 120.0
"""For a process that was asked to end: it writes a checkpoint first."""


@dataclass(frozen=True)
class Event:
    """A command was begun on a GPU, or is over."""

    name: str
    device: str
    log: Path
    code: int | None = None
    """Exit code, negative the number of the signal that ended it; None: it was begun."""


def side_by_side(commands: Mapping[str, Sequence[str]], devices: Sequence[str], logs: str | Path) -> Iterator[Event]:
    """Run commands by name, in their order, the next one on the first GPU that is free; yields what happens.

    `devices` are values of CUDA_VISIBLE_DEVICES; one that stands there twice gets two commands at once. What a command
    prints goes to NAME.log in `logs`. One that fails stops no other. A signal that ends this process, or closing the
    iterator, ends the commands under way first: each has LEAVE_SECONDS for its checkpoint.

    Raises:
        KeyboardInterrupt, training.signals.Terminated: a signal came.
        OSError: a command that cannot be started.
    """
    logs = Path(logs)
    logs.mkdir(parents=True, exist_ok=True)
    waiting, free = list(commands), list(devices)
    running: list[tuple[Event, subprocess.Popen]] = []
    with noted_signals() as signals:
        try:
            while waiting or running:
                if signals.number:
                    signals.leave()
                while waiting and free:
                    name, device = waiting.pop(0), free.pop(0)
                    started = Event(name, device, logs / f"{name}.log")
                    running.append((started, start(commands[name], device, started.log)))
                    yield started
                for started, process in list(running):
                    if process.poll() is not None:
                        running.remove((started, process))
                        free.append(started.device)
                        yield replace(started, code=process.returncode)
                time.sleep(POLL_SECONDS)
        finally:
            end([process for _, process in running])


def start(command: Sequence[str], device: str, log: Path) -> subprocess.Popen:
    """A process of its own session: a Ctrl-C in the terminal reaches it through this one alone, once."""
    with log.open("a") as file:
        return subprocess.Popen(
            command, env=os.environ | {"CUDA_VISIBLE_DEVICES": device}, stdin=subprocess.DEVNULL, stdout=file,
            stderr=subprocess.STDOUT, start_new_session=True,
        )  # fmt: skip


def end(processes: Sequence[subprocess.Popen]) -> None:
    """Ask the processes to end, and wait; those that do not are killed."""
    for process in processes:
        process.terminate()
    latest = time.monotonic() + LEAVE_SECONDS
    for process in processes:
        try:
            process.wait(max(0.0, latest - time.monotonic()))
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()

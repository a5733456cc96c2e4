"""Commands on several GPUs: their order, their logs, and what becomes of them at the end."""

import os
import signal
import sys
import threading
import time

import pytest

from ribonanzamamba.training import side_by_side as module
from ribonanzamamba.training.side_by_side import side_by_side

POLITE = """
import signal, sys, time
def leave(*_):
    print("checkpoint", flush=True)
    sys.exit(7)
signal.signal(signal.SIGTERM, leave)
print("ready", flush=True)
time.sleep(60)
"""


def python(text: str) -> list[str]:
    return [sys.executable, "-c", text]


def test_each_gpu_has_one_command_at_a_time(tmp_path):
    show = "import os, time; print(os.environ['CUDA_VISIBLE_DEVICES']); time.sleep({})"
    commands = {"slow": python(show.format(1.5)), "one": python(show.format(0)), "two": python(show.format(0))}
    events = list(side_by_side(commands, ["3", "5"], tmp_path / "logs"))
    assert [event.name for event in events if event.code is None] == ["slow", "one", "two"]
    ended = [event for event in events if event.code is not None]
    assert [(event.name, event.device, event.code) for event in ended] == [
        ("one", "5", 0), ("two", "5", 0), ("slow", "3", 0),
    ]  # fmt: skip
    assert (tmp_path / "logs" / "slow.log").read_text() == "3\n" and ended[1].log.read_text() == "5\n"


def test_one_that_fails_stops_no_other(tmp_path):
    commands = {"bad": python("import sys; sys.exit('no data')"), "good": python("print('done')")}
    codes = {event.name: event.code for event in side_by_side(commands, ["0"], tmp_path) if event.code is not None}
    assert codes == {"bad": 1, "good": 0}
    assert (tmp_path / "bad.log").read_text() == "no data\n"


def ready(path) -> None:
    until = time.monotonic() + 30
    while "ready" not in (path.read_text() if path.exists() else ""):
        assert time.monotonic() < until
        time.sleep(0.05)


@pytest.mark.parametrize(("number", "error"), [(signal.SIGINT, KeyboardInterrupt), (signal.SIGTERM, SystemExit)])
def test_a_signal_lets_all_write_a_checkpoint(tmp_path, number, error):
    def send():
        ready(tmp_path / "a.log")
        os.kill(os.getpid(), number)

    sender = threading.Thread(target=send)
    sender.start()
    with pytest.raises(error):
        list(side_by_side({"a": python(POLITE), "never": python("print(1)")}, ["0"], tmp_path))
    sender.join()
    assert (tmp_path / "a.log").read_text() == "ready\ncheckpoint\n" and not (tmp_path / "never.log").exists()


def test_a_deaf_process_is_killed(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "LEAVE_SECONDS", 0.5)
    deaf = python(
        "import os, signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN);"
        "print('ready', os.getpid(), flush=True); time.sleep(60)"
    )
    events = side_by_side({"deaf": deaf}, ["0"], tmp_path)
    next(events)
    ready(tmp_path / "deaf.log")
    began = time.monotonic()
    events.close()
    assert time.monotonic() - began < 20
    with pytest.raises(ProcessLookupError):
        os.kill(int((tmp_path / "deaf.log").read_text().split()[1]), 0)

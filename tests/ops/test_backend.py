"""What is kept from launch to launch of a kernel."""

import torch

from ribonanzamamba.ops import backend
from ribonanzamamba.ops.backend import Kernel


class Recorder:
    """In the place of a kernel of Triton: what was compiled and launched."""

    arg_names = ("x", "y", "length", "WIDTH", "SILU")

    def __init__(self, compiles: bool = True):
        self.asked, self.launched, self.compiles = [], [], compiles

    def __getitem__(self, grid):
        def ask(*arguments, **options):
            self.asked.append((grid, arguments, options))
            return Compiled(self.launched) if self.compiles else None

        return ask


class Compiled:
    def __init__(self, launched):
        self.launched = launched

    def __getitem__(self, grid):
        return lambda *arguments: self.launched.append((grid, arguments))


OPTIONS = {"SILU": True, "num_warps": 4, "WIDTH": 8}


def test_a_launch_that_looks_like_another_asks_for_nothing():
    recorder = Recorder()
    kernel = Kernel(recorder)
    x, other = torch.zeros(4), torch.ones(4)

    kernel[(2,)](x, None, 7, **OPTIONS)
    kernel[(3, 5)](other, None, 7, **OPTIONS)

    assert recorder.asked == [((2,), (x, None, 7), {**OPTIONS, "enable_fp_fusion": True})]
    # a compiled kernel takes constants too, in the order of its parameters
    ((grid, arguments),) = recorder.launched
    assert grid == (3, 5, 1)
    assert arguments[0] is other and arguments[1:] == (None, 7, 8, True)


def test_whatever_triton_compiles_for_is_told_apart():
    recorder = Recorder()
    kernel = Kernel(recorder)
    x, bytes_of = torch.zeros(4), torch.zeros(32, dtype=torch.uint8)
    launches = [
        ((x, None, 7), OPTIONS),
        ((x, x, 7), OPTIONS),
        ((x.double(), None, 7), OPTIONS),
        ((x[1:], None, 7), OPTIONS),
        ((bytes_of.view(torch.float32), None, 7), OPTIONS),
        ((bytes_of[8:].view(torch.float32), None, 7), OPTIONS),
        ((x, None, 1), OPTIONS),
        ((x, None, 7), OPTIONS | {"SILU": False}),
        ((x, None, 7), OPTIONS | {"num_warps": 8}),
        ((x, None, 7), {"WIDTH": True, "num_warps": 4, "SILU": 8}),
    ]
    expected = [launch for k, launch in enumerate(launches) if k != 4]  # looks like the first

    for _ in range(2):
        for arguments, options in launches:
            kernel[(1,)](*arguments, **options)

    assert len(recorder.asked) == len(expected)
    for (_, arguments, _), (wanted, _) in zip(recorder.asked, expected, strict=True):
        assert all(a is b for a, b in zip(arguments, wanted, strict=True))
    assert len(recorder.launched) == 2 * len(launches) - len(expected)


def test_the_interpreter_is_asked_every_time():
    recorder = Recorder(compiles=False)
    kernel = Kernel(recorder)

    for _ in range(2):
        kernel[(1,)](torch.zeros(4), None, 7, **OPTIONS)

    assert len(recorder.asked) == 2 and not kernel.known


def test_ever_new_shapes_do_not_pile_up(monkeypatch):
    monkeypatch.setattr(backend, "MOST_KNOWN", 3)
    recorder = Recorder()
    kernel = Kernel(recorder)

    for length in range(8):
        kernel[(1,)](torch.zeros(4), None, length, **OPTIONS)
        assert len(kernel.known) <= 3
    kernel[(1,)](torch.zeros(4), None, 7, **OPTIONS)

    assert len(recorder.asked) == 8 and len(recorder.launched) == 1

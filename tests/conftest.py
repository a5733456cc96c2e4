"""Settings of the whole test run."""

import os

import torch

# before anything imports Triton: the real kernels run on the CPU in its interpreter where there is no GPU
if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")
# pytest-xdist runs a process a core: more threads would wait for each other
torch.set_num_threads(1)

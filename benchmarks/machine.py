"""What a result line says about where it came from."""

import os
import platform
import subprocess
from pathlib import Path

import torch


def describe_machine() -> dict:
    """Processor, cores, PyTorch and the commit of the checkout (the variable COMMIT where there is no checkout)."""
    git = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], cwd=Path(__file__).parent, capture_output=True, text=True, check=False
    )
    return {
        "machine": platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "torch": torch.__version__,
        "commit": git.stdout.strip() or os.environ.get("COMMIT", ""),
    }


def describe_gpu() -> dict:
    """The same, and the GPU, CUDA and Triton."""
    import triton

    return {
        "gpu": torch.cuda.get_device_name(),
        "cuda": torch.version.cuda,
        "triton": triton.__version__,
        "python": platform.python_version(),
    } | describe_machine()

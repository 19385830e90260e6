"""What the machine can do: bfloat16 where it is fast; on what, with which code it was measured."""

import os
import platform
import subprocess
from functools import lru_cache
from pathlib import Path

import torch


@lru_cache
def cpu_info(key: str) -> str:
    """One entry of Linux's description of the processor; an empty string elsewhere."""
    path = Path("/proc/cpuinfo")
    lines = path.read_text().splitlines() if path.exists() else []
    return next((line.partition(":")[2].strip() for line in lines if line.startswith(key)), "")


def fast_dtype(device: str | torch.device) -> torch.dtype:
    """bfloat16 where it is faster than float32: on CUDA, and on CPUs with AMX.

    On a CPU with avx512_bf16 alone a training step took 1.5 times as long in bfloat16.
    """
    kind = torch.device(device).type
    amx = kind == "cpu" and "amx_bf16" in cpu_info("flags").split()
    return torch.bfloat16 if kind == "cuda" or amx else torch.float32


def autocast(device: str | torch.device):
    """A context in which matrix products run in `fast_dtype`. Sampling and scoring share it."""
    enabled = fast_dtype(device) == torch.bfloat16
    return torch.autocast(torch.device(device).type, torch.bfloat16, enabled=enabled)


def hardware(device: str | torch.device) -> str:
    """The hardware that the numbers were measured on."""
    if torch.device(device).type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{cpu_info('model name') or platform.machine()}, {os.cpu_count()} cores"


def commit() -> str:
    """The version of the code; "unknown" outside a git repository."""
    command = ["git", "-C", Path(__file__).parent, "describe", "--always", "--dirty"]
    try:
        done = subprocess.run(command, capture_output=True, text=True)
    except OSError:
        return "unknown"
    return done.stdout.strip() or "unknown"

"""What a number depends on beside the recipe: packages, machine, commit."""

from __future__ import annotations

import os
import platform
import subprocess
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

import understudy


def versions() -> dict[str, Any]:
    """What a number depends on beside the recipe: packages, Python, processor, and the commit and its changes."""
    packages = ("torch", "transformers", "accelerate", "numpy", "safetensors")
    found: dict[str, Any] = {name: metadata.version(name) for name in packages}
    found |= {
        "understudy": understudy.__version__,
        "python": platform.python_version(),
        "machine": platform.machine(),
        "system": platform.system(),
        "cpu_threads": torch.get_num_threads(),
        "cpu_count": os.cpu_count(),
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
    }
    return found | _source_state()


def _source_state() -> dict[str, str]:
    """Commit and diff of the source tree, where the package runs from a git checkout."""
    root = Path(understudy.__file__).resolve().parent
    try:
        git = ["git", "-C", str(root)]
        commit = subprocess.run(
            [*git, "rev-parse", "HEAD"], capture_output=True, text=True, timeout=5, check=True
        )
        diff = subprocess.run(
            [*git, "diff", "HEAD", "--", "."], capture_output=True, text=True, timeout=5, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return {}
    return {"commit": commit.stdout.strip(), "diff": diff.stdout}

"""What every test shares: one thread a process, and the folder of `small.py` on the import path."""

from __future__ import annotations

import pytest


@pytest.fixture(autouse=True, scope="session")
def one_thread():
    """Two threads on a busy machine are slower than one, and change the order of sums."""
    try:
        import torch
    except ImportError:
        return
    torch.set_num_threads(1)

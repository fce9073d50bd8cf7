"""All benchmarks, one after another, each in a process of its own: `make bench`. One that fails does not stop the others."""

from __future__ import annotations

import argparse
import importlib.util
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from benchmarks.common import add_device
from benchmarks.report import ORDER

NEEDS_PEER = ("divergence", "step")
"""These know `--peer-python`; the others compare with nothing that needs an environment of its own."""
NEEDS_TEXT = ("drafts",)
"""These know `--gsm8k`, and fall back on the sample rows of the tests."""


def main(arguments: Sequence[str]) -> int:
    options = argparse.ArgumentParser(prog="python -m benchmarks.run", description=__doc__)
    options.add_argument("--smoke", action="store_true", help="the smallest sizes")
    options.add_argument("--out", type=Path, help="folder of the results' JSON files")
    options.add_argument("--peer-python", help="an interpreter whose environment has TRL")
    options.add_argument(
        "--gsm8k",
        default=os.environ.get("UNDERSTUDY_GSM8K"),
        help="folder with GSM8K's train.jsonl and test.jsonl; by default $UNDERSTUDY_GSM8K",
    )
    add_device(options)
    chosen = options.parse_args(arguments)
    failed = [name for name in ORDER if not _run(name, chosen)]
    if failed:
        sys.stderr.write(f"failed: {', '.join(failed)}\n")
    return bool(failed)


def _run(name: str, chosen: argparse.Namespace) -> bool:
    module = f"benchmarks.{name}"
    if importlib.util.find_spec(module) is None:
        sys.stderr.write(f"{module} is not there\n")
        return False
    command = [sys.executable, "-m", module]
    command += ["--smoke"] if chosen.smoke else []
    command += ["--out", str(chosen.out)] if chosen.out else []
    command += ["--peer-python", chosen.peer_python] if chosen.peer_python and name in NEEDS_PEER else []
    command += ["--gsm8k", chosen.gsm8k] if chosen.gsm8k and name in NEEDS_TEXT else []
    command += ["--device", chosen.device] if chosen.device != "auto" else []
    return subprocess.run(command, env={"OMP_NUM_THREADS": "1", **os.environ}, check=False).returncode == 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

"""The program of a process that plays episodes: run as a script by `workers`, never imported.

One JSON list of requests a line in; one JSON answer a line out for every request, in their order, each as soon as it is
there. Both go over a socket of their own: standard input is empty, and what a world prints, in C too, goes to a file that
our caller reads if we die.

It is two processes: one plays, and one watches, since a world can keep Python from running for as long as it likes. The watcher
says how the player ended, and ends everything when the caller is gone.
"""

from __future__ import annotations

import base64
import contextlib
import importlib
import importlib.util
import json
import os
import pickle
import signal
import socket
import sys
import threading
import time
from dataclasses import asdict
from typing import Any

WATCH_SECONDS = 0.5
MAX_DETAIL_CHARS = 500


def main() -> None:
    line = socket.socket(fileno=int(sys.argv[1]))
    line.set_inheritable(False)  # a process that a world starts must not keep it open
    player = os.fork()  # nothing has been loaded yet, and there are no threads
    if player == 0:
        play(line)
    else:
        watch(player, line, caller=int(sys.argv[2]))


def watch(player: int, line: socket.socket, *, caller: int) -> None:
    """Wait for the end of the player, say how it came, and wait to be ended: by the caller, or for want of one."""
    waits = threading.Thread(target=_end_with_caller, args=(caller,))
    waits.start()
    status = os.waitstatus_to_exitcode(os.waitpid(player, 0)[1])
    told = f"exit status {status}" if status >= 0 else f"signal {-status}"
    os.write(2, f" ({told})".encode())
    line.close()  # the last to hold it: the caller now looks
    waits.join()


def _end_with_caller(caller: int) -> None:
    """However our caller ends, nothing of ours goes on without it, nor anything that a world has started."""
    while os.getppid() == caller:
        time.sleep(WATCH_SECONDS)
    os.killpg(os.getpgrp(), signal.SIGKILL)


def play(line: socket.socket) -> None:
    """Answer requests until there are no more."""
    _postpone("understudy.tasks")
    player = Player()
    line.sendall(b'"ready"\n')
    for batch in line.makefile("rb"):
        for request in json.loads(batch):
            with contextlib.suppress(OSError):  # a world may have closed it
                os.ftruncate(2, 0)  # what was printed before matters no more
                os.lseek(2, 0, os.SEEK_SET)
            answer = player.answer(request)
            line.sendall(json.dumps(answer, allow_nan=False).encode() + b"\n")
    player.close()


class Player:
    """The episodes of this process."""

    def __init__(self) -> None:
        # Once the package is postponed, so not at the top of the file.
        self.module = importlib.import_module("understudy.tasks.environments.environment")
        self.errors = importlib.import_module("understudy.errors")
        self.episodes: dict[int, Any] = {}
        self.wants_label: dict[int, bool] = {}

    def answer(self, request: dict[str, Any]) -> dict[str, Any]:
        """What came of a request; an episode that failed is over."""
        episode = request["episode"]
        started = time.perf_counter()
        try:
            answer = self._do(request)
        except self.errors.UnderstudyError as error:
            self._forget(episode)
            answer = {"refused": str(error)}
        except self.module.GarbageError as error:
            self._forget(episode)
            answer = {"failure": ["garbage", str(error)[:MAX_DETAIL_CHARS]]}
        except Exception as error:  # noqa: BLE001 - whatever a world raises, the other episodes go on
            self._forget(episode)
            answer = {"failure": ["raised", f"{type(error).__name__}: {error}"[:MAX_DETAIL_CHARS]]}
        return {"episode": episode, "seconds": time.perf_counter() - started, **answer}

    def _do(self, request: dict[str, Any]) -> dict[str, Any]:
        episode = request["episode"]
        if request["kind"] == "close":
            self._forget(episode)
            return {}
        if request["kind"] == "start":
            family = pickle.loads(base64.b64decode(request["family"]))  # noqa: S301 - our caller's own
            family.require()
            self.episodes[episode] = self.module.Episode(family, request["split"], request["index"])
            self.wants_label[episode] = request["wants_label"]
            outcome = self.episodes[episode].start()
        else:
            outcome = self.episodes[episode].step(request["action"])
        label = self.episodes[episode].expert_action() if self.wants_label[episode] else None
        if outcome.is_done:
            self._forget(episode)
        return {"outcome": asdict(outcome), "expert_action": label}

    def _forget(self, episode: int) -> None:
        over = self.episodes.pop(episode, None)
        self.wants_label.pop(episode, None)
        if over is not None:
            with contextlib.suppress(Exception):  # its outcome stands, however it ends
                over.close()

    def close(self) -> None:
        for episode in list(self.episodes):
            self._forget(episode)


def _postpone(package: str) -> None:
    """Let modules of a package be imported without its own beginning, which runs when something in it is asked for.

    `understudy.tasks` loads torch: seconds and 200 MB in every process, which hardly a world needs.
    """
    spec = importlib.util.find_spec(package)
    assert spec is not None and spec.loader is not None
    loader, module = spec.loader, importlib.util.module_from_spec(spec)

    def first_use(name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        del module.__dict__["__getattr__"]
        loader.exec_module(module)
        return getattr(module, name)

    module.__dict__["__getattr__"] = first_use
    sys.modules[package] = module
    parent, _, name = package.rpartition(".")
    setattr(sys.modules[parent], name, module)


if __name__ == "__main__":
    main()

"""The student's responses from a vLLM server: its weights go there through a folder, tokens and log-probabilities come back.

What differs from writing in the training process. The law is the student's up to the server's kernels and precision, and
`logp` is the server's: of the law that drew the token. Every response asks for a seed of its own, named like its random stream
here, so the same run asks for the same; which tokens come of it still depends on the server's batches. Where a response ends is
decided here, by the same rule.

What would spoil a run without a sound is a server with other weights than the student's: reloading has been known to keep the
old ones (vLLM issue 32718), and cached prefixes outlive them. Three things are looked at:

  each reload  log-probabilities of fixed texts, the server's beside the student's. A mean difference above the tolerance
               stops the run. So does a change of the student's that did not arrive at the server (`arrival`), however small
               the change is in itself; one too small to be told from the server's noise is added to the next.
  each round   the same difference over tokens that the server has just drawn (`gap`). It is logged, and stops the run above
               the tolerance: here prefixes, sampling settings and whoever else uses the server come in.
  each answer  what it must hold (`rollouts.server`).

They cannot tell a server whose weights differ so little that neither number shows it.

N tokens, V vocabulary, T positions, D width.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, TypeVar
from uuid import uuid4

import numpy as np
import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from understudy.errors import TrainingError
from understudy.files import atomic_path, remove
from understudy.models import head_of, hidden_states, inner_model, merged_weights, quiet_transformers
from understudy.objectives.shapes import wide_log_softmax
from understudy.randomness import generator
from understudy.records import Prompt, Trajectory
from understudy.rollouts.sampler import Limits, Response, recorded
from understudy.rollouts.server import Answer, Server

Item = TypeVar("Item")
Found = TypeVar("Found")
Arrival = Literal["arrived", "stale", "cannot tell"]

MOST_AT_ONCE = 512
"""Requests under way where train.rollout_batch_size does not say. A server makes batches of those it has."""
CHECKED_TOKENS = 8192
"""Tokens of a round, prompts included, that the student reads again for the gap: one forward pass of a small part of it."""
FELT_NATS = 1e-3
"""Root mean square change of the student's log-probabilities below which nobody asks yet whether it has arrived."""
_LEAST_PROBED = 16
_SURE = 6.0
"""Standard errors: a false alarm in 1e9 reloads, if errors are normal."""
_MOST_PARTS = 16
"""Times that one response is asked for, the server having stopped where our rule does not."""
_TILE = 512
"""Tokens whose whole laws are held at once."""
_CELLS = 8192
"""Tokens, padding included, of one forward pass for the gap."""


@dataclass(kw_only=True)
class ServedStudent:
    """The student as a server writes for it."""

    server: Server
    folder: Path
    """Where weights are handed over: our own, emptied at will, and seen by the server under this path."""
    vocab_size: int
    """Ids that can be emitted, as in the training process."""
    num_rows: int
    """Ids that the server can emit: the rows of the head, which may be padded beyond the vocabulary."""
    dtype: torch.dtype | None
    """Of the weights handed over; None: as they are trained."""
    tolerance_nats: float
    probe: Sequence[tuple[int, ...]]
    """Fixed texts on which a reload is checked; may be empty, and then the round's own tokens are all there is."""
    at_once: int | None
    """Requests under way; None: as many as there are, up to MOST_AT_ONCE."""
    _settled: tuple[np.ndarray, np.ndarray] | None = field(default=None, repr=False)
    """(server's, student's) log-probabilities of the probe when a change was last seen to have arrived."""

    def update(self, model: nn.Module, version: int) -> None:
        """Hand the student's weights over and see that the server has them. In evaluation mode, in the precision of rollouts.

        Raises:
            TrainingError: they cannot be written, or not be read by the server, or it does not compute with them.
        """
        name = self.server.served().name
        # Never the same path twice: neither the server nor a network file system can then mistake old files for new ones.
        target = self.folder / f"step-{version:06d}-{uuid4().hex[:8]}"
        _write(model, self.dtype, target)
        try:
            self.server.load(target.absolute())
        finally:
            remove(self.folder)
        self._require_arrival(model, name)

    def write(
        self,
        prompts: Sequence[Prompt],
        names: Sequence[tuple[object, ...]],
        *,
        limits: Limits,
        temperature: float,
    ) -> list[Response]:
        """One response a prompt, in their order, from the weights that were handed over last.

        Where the server stops and our rule does not (at an end of its own, at its own limit of tokens, before an id of padding,
        which our sampler never draws), it is asked to go on from there: the law of what follows is the same.

        Args:
            names: the random stream of each prompt; its seed is made of it.
        Raises:
            TrainingError: an answer that is missing or cannot be used; nothing is returned then.
        """
        if not prompts:
            return []
        name, salt = self.server.served().name, uuid4().hex
        token_ids: list[list[int]] = [[] for _ in prompts]
        logps: list[list[float]] = [[] for _ in prompts]
        found: dict[int, Response] = {}
        for part in range(_MOST_PARTS):
            going = [row for row in range(len(prompts)) if row not in found]

            def ask(row: int, part: int = part) -> Answer:
                return self.server.complete(
                    name,
                    (*prompts[row].token_ids, *token_ids[row]),
                    max_tokens=limits.max_new_tokens - len(token_ids[row]),
                    temperature=temperature,
                    limits=limits,
                    seed=_seed(*names[row], part),
                    salt=salt,
                )

            answers = _side_by_side(ask, going, self.at_once or MOST_AT_ONCE)
            for row, answer in zip(going, answers, strict=True):
                taken = self._emitted(answer)
                token_ids[row] += taken
                logps[row] += answer.logp[: len(taken)]
                if token_ids[row]:
                    response, has_ended = recorded(token_ids[row], logps[row], limits)
                    if has_ended:
                        found[row] = response
            if len(found) == len(prompts):
                return [found[row] for row in range(len(prompts))]
        row = next(row for row in range(len(prompts)) if row not in found)
        raise TrainingError(
            f"the server {self.server.url} stopped the response to prompt {prompts[row].id} {_MOST_PARTS} times in "
            f"{len(token_ids[row])} tokens, before any end of ours. Start it with --generation-config vllm, so that it has no "
            "ends and limits of its own."
        )

    def gap(self, model: nn.Module, trajectories: Sequence[Trajectory]) -> float | None:
        """Mean |log p(server) - log p(student)| in nats over tokens of these trajectories, of some where they are many; None: the
        student wrote none of them.

        Raises:
            TrainingError: it is above the tolerance.
        """
        mine = [t for t in trajectories if all(t.is_student)]
        if not mine:
            return None
        size = sum(len(t.prompt.token_ids) + len(t.response_ids) for t in mine)
        chosen = mine[:: -(-size // CHECKED_TOKENS)]
        rows = [((*t.prompt.token_ids, *t.response_ids), len(t.prompt.token_ids)) for t in chosen]
        own_N = np.concatenate(token_logp(model, self.vocab_size, rows))
        gap = float(np.abs(own_N - np.concatenate([t.logp for t in chosen])).mean())
        if not gap <= self.tolerance_nats:
            raise self._too_far(gap, len(own_N), "that it has just drawn")
        return gap

    def probe_logp(self, model: nn.Module, name: str) -> tuple[np.ndarray, np.ndarray]:
        """Log-probabilities of the probe's tokens, but the first of each text: (the server's, the student's)."""
        ours = token_logp(model, self.vocab_size, [(ids, 1) for ids in self.probe])
        theirs = [self.server.prompt_logp(name, ids) for ids in self.probe]
        return np.concatenate([np.zeros(0), *theirs]), np.concatenate([np.zeros(0), *ours])

    def _require_arrival(self, model: nn.Module, name: str) -> None:
        theirs_N, ours_N = self.probe_logp(model, name)
        if len(ours_N) == 0:
            return
        gap = float(np.abs(theirs_N - ours_N).mean())
        if not gap <= self.tolerance_nats:
            raise self._too_far(
                gap, len(ours_N), "of training texts, after it had read the student's weights"
            )
        if self._settled is None:
            self._settled = theirs_N, ours_N
            return
        then_theirs_N, then_ours_N = self._settled
        came_N, moved_N = theirs_N - then_theirs_N, ours_N - then_ours_N
        verdict = arrival(came_N, moved_N, noise_nats=_root_mean_square(then_theirs_N - then_ours_N))
        if verdict == "stale":
            raise TrainingError(
                f"the server {self.server.url} says that it has read the student's weights, and computes with old ones: of "
                f"{len(ours_N)} log-probabilities the student's have moved by {_root_mean_square(moved_N):.2g} nats, the "
                f"server's by {_root_mean_square(came_N):.2g}, and not with them. Use vLLM 0.15 or newer, where reload_weights "
                "takes a weights_path, and go on with --resume."
            )
        if verdict == "arrived":
            self._settled = theirs_N, ours_N

    def _emitted(self, answer: Answer) -> list[int]:
        """The tokens of an answer up to the first id of padding."""
        high = max(answer.token_ids)
        if high >= self.num_rows:
            raise TrainingError(
                f"the server {self.server.url} gave token id {high}, and the student has {self.num_rows} output rows. Start it "
                "with the student's own checkpoint."
            )
        return list(itertools.takewhile(lambda token: token < self.vocab_size, answer.token_ids))

    def _too_far(self, gap: float, num_tokens: int, which: str) -> TrainingError:
        return TrainingError(
            f"the server {self.server.url} and the student differ by {gap:.2g} nats a token on {num_tokens} tokens {which}; with "
            f"the same weights it would be {self.tolerance_nats:g} at most. No step was taken on it. Use vLLM 0.15 or newer, the "
            "student's own checkpoint, unquantised, --logprobs-mode raw_logprobs, and a server that nobody else writes to; if it "
            "is only less precise, raise rollouts.server_tolerance_nats."
        )


def arrival(came_N: np.ndarray, moved_N: np.ndarray, *, noise_nats: float) -> Arrival:
    """Whether a change of the student's log-probabilities is found in the server's.

        share = sum_n came_n moved_n / sum_n moved_n^2        1: all of it arrived, 0: nothing did
        error = |came - share moved| / (sqrt(N - 1) |moved|)

    Both are differences between two times: a server with its old weights repeats its old numbers, and share and error are 0 to
    the last bit, however small the change. What rounding does to other weights does not drop out: in half precision it moves
    log-probabilities by hundredths of a nat, of the student's own, too, and a share of a smaller change says nothing.

    Args:
        came_N, moved_N: the server's and the student's change, nats.
        noise_nats: root mean square difference of the two where weights were the same. A change that is not three times as large
            is judged only where the server's numbers are its old ones to the last bit.
    Returns:
        "stale" or "arrived" if the share is below or above 1/2 by six errors; "cannot tell" otherwise, for fewer than 16 tokens,
        for changes below a thousandth of a nat, which may be rounding of our own, and for those within the noise.
    """
    moved_nats = _root_mean_square(moved_N)
    if len(moved_N) < _LEAST_PROBED or moved_nats < FELT_NATS:
        return "cannot tell"
    if came_N.any() and moved_nats < 3 * noise_nats:
        return "cannot tell"
    size = float(moved_N @ moved_N)
    share = float(came_N @ moved_N) / size
    rest_N = came_N - share * moved_N
    error = (float(rest_N @ rest_N) / (len(moved_N) - 1) / size) ** 0.5
    if abs(share - 0.5) <= _SURE * error:
        return "cannot tell"
    return "arrived" if share > 0.5 else "stale"


@torch.no_grad()
def token_logp(
    model: nn.Module, vocab_size: int, rows: Sequence[tuple[Sequence[int], int]]
) -> list[np.ndarray]:
    """Log-probabilities under the student as it is, over its first `vocab_size` ids.

    Args:
        rows: (token ids, the first place that is wanted); at least 1, as the first token has no law.
    Returns:
        one array a row, of its tokens from that place on; nats, float64.
    """
    head = head_of(model, vocab_size)
    device = head.weight_VD.device
    order = sorted(range(len(rows)), key=lambda row: len(rows[row][0]))
    found: dict[int, np.ndarray] = {}
    while order:
        # From the longest on, as many as fit: they are of like length.
        longest = len(rows[order[-1]][0])
        count = max(1, _CELLS // longest)
        batch, order = order[-count:], order[:-count]
        token_BT = torch.zeros(len(batch), longest, dtype=torch.long)
        for b, row in enumerate(batch):
            token_BT[b, : len(rows[row][0])] = torch.tensor(rows[row][0])
        token_BT = token_BT.to(device)
        hidden_BTD = hidden_states(model, token_BT)
        for b, row in enumerate(batch):
            ids, first = rows[row]
            hidden_ND, token_N = hidden_BTD[b, first - 1 : len(ids) - 1], token_BT[b, first : len(ids)]
            parts: list[Tensor] = [
                wide_log_softmax(head.logits(hidden_nD)).gather(-1, token_n[:, None])[:, 0]
                for hidden_nD, token_n in zip(hidden_ND.split(_TILE), token_N.split(_TILE), strict=True)
            ]
            found[row] = torch.cat(parts).double().cpu().numpy()
    return [found[row] for row in range(len(rows))]


def _write(model: nn.Module, dtype: torch.dtype | None, target: Path) -> None:
    """The weights and their config as a Hugging Face folder, there whole or not at all."""
    try:
        remove(target.parent)  # left there by a run that was killed
        target.parent.mkdir(parents=True)
        with atomic_path(target) as part, quiet_transformers():
            inner_model(model).save_pretrained(part, state_dict=merged_weights(model, dtype))
    except (OSError, SafetensorError) as error:
        raise TrainingError(
            f"could not write the weights for the server to {target}: {error}. Free some space, or set rollouts.server_weights, "
            "and go on with --resume."
        ) from error


def _seed(*name: object) -> int:
    """What a response asks the server to draw with. Whole numbers up to 2^53 pass through any JSON unchanged."""
    return int(generator(*name, "server").integers(2**53))


def _side_by_side(ask: Callable[[Item], Found], items: Sequence[Item], at_once: int) -> list[Found]:
    """ask(item) for all items, in their order. After a failure nothing more is asked, and what is under way is left alone."""
    pool = ThreadPoolExecutor(max_workers=min(len(items), at_once), thread_name_prefix="server")
    try:
        asked = [pool.submit(ask, item) for item in items]
        ended, _ = wait(asked, return_when=FIRST_EXCEPTION)
        for answer in ended:
            if (failure := answer.exception()) is not None:
                raise failure
        return [answer.result() for answer in asked]
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


def _root_mean_square(difference_N: np.ndarray) -> float:
    return float(np.sqrt(np.mean(np.square(difference_N))))

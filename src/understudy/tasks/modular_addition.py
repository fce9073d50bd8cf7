"""Modular addition with a chain of thought: m random digits, then their m running sums modulo p, one token
each.

    prompt  x_1 x_2 ... x_m =        response  s_1 s_2 ... s_m,   s_t = (x_1 + ... + x_t) mod p

Token ids: the digits 0 .. p-1, and p for '='. There is no end-of-sequence token: a response has exactly m
    tokens. B sequences, R response positions, V vocabulary; m the length, p the modulus.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import chain

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from understudy.errors import ConfigError
from understudy.records import Prompt
from understudy.tasks.streams import stream
from understudy.tasks.task import SPLITS, Grade, Split

BLOCK = 1024
"""Prompts drawn at a time: the price of a jump to item i is at most one block."""
SHARES = 8
"""Of 8 shares of all prompts, one is for validation, one for test, the rest for training."""
MIN_PROMPTS = 64
"""Fewer different prompts than this cannot be shared out: a split might be empty."""


@dataclass(frozen=True, kw_only=True)
class ModularAddition:
    """The task of arXiv:2606.30923, B.4 (there p = 7, m = 31), with endless, disjoint splits.

    A prompt belongs to one split by its content, for every seed alike: a prompt that was ever trained on is
        never validated on. Within its split it is uniform. The paper's bank of 15M + 5k prompts is not
        reproduced.
    """

    modulus: int
    length: int
    seed: int = 1337

    def __post_init__(self) -> None:
        if not 2 <= self.modulus <= 2**16:
            raise ConfigError(f"modulus must be in 2 .. 2**16, got {self.modulus}.")
        if self.length < 1:
            raise ConfigError(f"length must be >= 1, got {self.length}.")
        if self.length < 6 and self.modulus**self.length < MIN_PROMPTS:
            num_prompts = self.modulus**self.length
            raise ConfigError(
                f"modulus {self.modulus} and length {self.length} give only {num_prompts} different prompts, "
                f"and {MIN_PROMPTS} are needed to keep train, validation and test apart. "
                "Raise the length or the modulus."
            )
        stream(self.seed)  # refuses a bad seed here, not at the first prompt

    @property
    def name(self) -> str:
        return "modular_addition"

    @property
    def identity(self) -> str:
        return repr(self)

    @property
    def vocab_size(self) -> int:
        return self.modulus + 1

    @property
    def max_new_tokens(self) -> int:
        return self.length

    @property
    def eos_ids(self) -> frozenset[int]:
        return frozenset()

    @property
    def stop_strings(self) -> tuple[str, ...]:
        return ()

    @property
    def action_ids(self) -> tuple[int, ...]:
        """The digits: noise never emits '='."""
        return tuple(range(self.modulus))

    def size(self, split: Split) -> None:
        """Endless; in a small space of prompts they come again."""
        assert split in SPLITS, split

    def prompts(self, split: Split, start: int, count: int) -> list[Prompt]:
        assert min(start, count) >= 0, (start, count)
        made: list[Prompt] = []
        for block in range(start // BLOCK, -(-(start + count) // BLOCK)):
            first = block * BLOCK
            low, high = max(start - first, 0), min(start + count - first, BLOCK)
            digits_BT = _block(self.modulus, self.length, self.seed, split, block)[low:high]
            sums_BT = digits_BT.cumsum(axis=1) % self.modulus
            made += [
                self._prompt(f"{split}/{first + low + i}", x, s)
                for i, (x, s) in enumerate(zip(digits_BT.tolist(), sums_BT.tolist(), strict=True))
            ]
        return made

    def _prompt(self, prompt_id: str, digits: list[int], sums: list[int]) -> Prompt:
        return Prompt(
            id=prompt_id,
            token_ids=(*digits, self.modulus),
            text=_spaced(digits) + " =",
            reference=_spaced(sums),
            reference_ids=tuple(sums),
            meta={"answer": str(sums[-1])},
        )

    def grade(self, prompt: Prompt, response_ids: Sequence[int]) -> Grade:
        """Right if the whole chain is: exactly the m running sums. `answer` is the m-th token, right or
        wrong."""
        is_correct = tuple(response_ids) == prompt.reference_ids
        has_answer = len(response_ids) == self.length and 0 <= response_ids[-1] < self.modulus
        answer = str(response_ids[-1]) if has_answer else None
        return Grade(score=float(is_correct), is_correct=is_correct, answer=answer)

    def token_grades(self, prompt: Prompt, response_ids: Sequence[int]) -> tuple[bool, ...]:
        """Token t against the true running sum t; what follows the m-th token is wrong."""
        gold = prompt.reference_ids
        assert gold is not None
        return tuple(t < len(gold) and token == gold[t] for t, token in enumerate(response_ids))

    def oracle(self) -> ModularAdditionOracle:
        return ModularAdditionOracle(modulus=self.modulus, length=self.length)

    def decode(self, token_ids: Sequence[int]) -> str:
        """Digits and '=' with spaces between; an id outside the vocabulary as <id>."""
        return " ".join(map(self._name, token_ids))

    def _name(self, token: int) -> str:
        if token == self.modulus:
            return "="
        return str(token) if 0 <= token < self.modulus else f"<{token}>"


@dataclass(frozen=True, kw_only=True)
class ModularAdditionOracle:
    """The expert that continues from what was *emitted*: all mass on (previous emitted sum + x_t) mod p.

    On right prefixes this is the true running sum; after an error it works on from the wrong sum. Where the
    previous token is '=', which is no sum, the true running sum stands in for it.
    """

    modulus: int
    length: int

    @property
    def vocab_size(self) -> int:
        return self.modulus + 1

    def logp_BTV(self, prompts: Sequence[Prompt], responses: Sequence[Sequence[int]]) -> Tensor:
        """0 for the one next token and -inf for every other; see `Oracle.logp_BTV` for shapes and for what is
        NaN."""
        digits_BT = self._digits(prompts)
        lengths_B = np.fromiter(map(len, responses), dtype=np.int64, count=len(responses))
        if len(prompts) != len(responses):
            raise ValueError(
                f"expected one response per prompt, got {len(prompts)} prompts, {len(responses)} responses."
            )
        if len(responses) and lengths_B.max() > self.length:
            raise ValueError(
                f"a response of {lengths_B.max()} tokens is longer than the chain of {self.length}."
            )
        num_rows = min(int(lengths_B.max(initial=0)) + 1, self.length)
        previous_BT = self._previous(responses, lengths_B, num_rows)
        true_BT = np.zeros_like(previous_BT)
        true_BT[:, 1:] = digits_BT.cumsum(axis=1)[:, : num_rows - 1] % self.modulus
        base_BT = np.where(previous_BT == self.modulus, true_BT, previous_BT)
        next_BT = torch.from_numpy((base_BT + digits_BT[:, :num_rows]) % self.modulus)
        logp_BTV = torch.full((len(prompts), num_rows, self.vocab_size), -torch.inf)
        logp_BTV.scatter_(2, next_BT[..., None], 0.0)
        is_past_BT = np.arange(num_rows) > lengths_B[:, None]
        if is_past_BT.any():
            logp_BTV[torch.from_numpy(is_past_BT)] = torch.nan
        return logp_BTV

    def _digits(self, prompts: Sequence[Prompt]) -> NDArray[np.int64]:
        try:
            tokens_BT = np.array([prompt.token_ids for prompt in prompts], dtype=np.int64)
        except ValueError:  # ragged
            tokens_BT = np.zeros((len(prompts), 0), dtype=np.int64)
        if not prompts:
            return np.zeros((0, self.length), dtype=np.int64)
        if tokens_BT.shape[1:] != (self.length + 1,):
            found = sorted({len(prompt.token_ids) for prompt in prompts})
            raise ValueError(
                f"expected prompts of {self.length} digits and '=', got prompts of {found} tokens."
            )
        digits_BT, last_B = tokens_BT[:, :-1], tokens_BT[:, -1]
        if (last_B != self.modulus).any() or (digits_BT < 0).any() or (digits_BT >= self.modulus).any():
            raise ValueError(
                f"expected prompts of digits 0 .. {self.modulus - 1} that end in {self.modulus} ('=')."
            )
        return digits_BT

    def _previous(
        self, responses: Sequence[Sequence[int]], lengths_B: NDArray[np.int64], num_rows: int
    ) -> NDArray[np.int64]:
        """The token emitted just before row t; 0 before the first, where the sum is still empty."""
        flat = np.fromiter(chain.from_iterable(responses), dtype=np.int64, count=int(lengths_B.sum()))
        if len(flat) and not 0 <= flat.min() <= flat.max() <= self.modulus:
            raise ValueError(
                f"response tokens must be in 0 .. {self.modulus}, got {flat.min()} .. {flat.max()}."
            )
        emitted_BT = np.zeros((len(responses), self.length), dtype=np.int64)
        emitted_BT[np.arange(self.length) < lengths_B[:, None]] = flat
        return np.pad(emitted_BT, ((0, 0), (1, 0)))[:, :num_rows]


def _spaced(numbers: list[int]) -> str:
    """[3, 1] -> '3 1'; several times faster than joining one string a number."""
    return str(numbers)[1:-1].replace(",", "")


@lru_cache(maxsize=8)
def _block(modulus: int, length: int, seed: int, split: Split, block: int) -> NDArray[np.int64]:
    """BLOCK prompts of one split, [BLOCK, m] digits: uniform draws, of which only the split's own are
    kept."""
    bits = stream(seed, SPLITS.index(split), block)
    kept: list[NDArray[np.int64]] = []
    missing = BLOCK
    while missing > 0:
        num_draws = missing + missing // 2 if split == "train" else missing * SHARES
        raw_BT = np.asarray(bits.random_raw(num_draws * length)).reshape(num_draws, length)
        # The upper 32 bits as a fraction of p: off from uniform by less than p / 2**32.
        digits_BT = ((raw_BT >> np.uint64(32)) * np.uint64(modulus) >> np.uint64(32)).astype(np.int64)
        kept.append(digits_BT[split_of(digits_BT) == SPLITS.index(split)])
        missing -= len(kept[-1])
    digits_BT = np.concatenate(kept)[:BLOCK]
    digits_BT.flags.writeable = False
    return digits_BT


def split_of(digits_BT: NDArray[np.int64]) -> NDArray[np.int64]:
    """The split (index into SPLITS) a prompt belongs to, by a hash of its digits: no seed, no order, no
    state."""
    weight_T = np.asarray(stream(0, len(SPLITS)).random_raw(digits_BT.shape[1])) | np.uint64(1)
    mixed_B = ((digits_BT.astype(np.uint64) + np.uint64(1)) * weight_T).sum(axis=1, dtype=np.uint64)
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        mixed_B = (mixed_B ^ (mixed_B >> np.uint64(shift))) * np.uint64(factor)
    share_B = (mixed_B ^ (mixed_B >> np.uint64(31))) >> np.uint64(64 - 3)
    return np.select([share_B == 0, share_B == 1], [1, 2], default=0).astype(np.int64)

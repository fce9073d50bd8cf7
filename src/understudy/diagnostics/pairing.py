"""Which responses stand against which: the prompts of two sets, their weights, their halves, and their shuffled labels.

A, B the two sets; P prompts of a set, N responses of both sets (A first). Every prompt weighs the same, however many
responses it has: else a set that answers one prompt more often would differ by its prompts alone.
"""

from __future__ import annotations

import hashlib
import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from understudy.diagnostics.responses import Response, ResponseSet
from understudy.errors import DataError
from understudy.randomness import generator

Prompts = Literal["same", "matched", "independent"]


@dataclass(frozen=True, kw_only=True, eq=False)
class Layout:
    """Two sets side by side.

    `prompt_N` numbers the prompts of a set in the order of `ids_a` and `ids_b`, which are the same list when the sets
    are paired. `weight_N` is +1 / (prompts * responses of the prompt) for A and minus that for B: its scalar product
    with any property of responses is the gap of the property's share.
    """

    responses: tuple[Response, ...]
    is_b_N: NDArray[np.bool_]
    prompt_N: NDArray[np.int64]
    weight_N: NDArray[np.float64]
    ids_a: tuple[str, ...]
    ids_b: tuple[str, ...]
    is_paired: bool

    @property
    def num_prompts(self) -> int:
        """Prompts of the smaller set."""
        return min(len(self.ids_a), len(self.ids_b))


def lay_out(a: ResponseSet, b: ResponseSet, prompts: Prompts) -> Layout:
    """Put two sets side by side.

    Args:
        prompts: "same": both have the same prompts, or it is an error. "matched": those that both have, the rest is left
            out. "independent": no prompt of A belongs to one of B.
    Raises:
        DataError: no prompt ids, or prompts that do not match; the message says how many do.
    """
    if prompts == "independent":
        return _independent(a, b)
    for one in (a, b):
        if not one.has_ids:
            raise DataError(
                f"{one.name} has no prompt ids, so its responses cannot be set against those to the same prompts. "
                "Name the field with --id, or compare independent sets with --prompts independent."
            )
    ids_a = tuple(dict.fromkeys(response.prompt for response in a.responses))
    in_b = {response.prompt for response in b.responses}
    shared = tuple(prompt for prompt in ids_a if prompt in in_b)
    counts = (
        f"{a.name} has {len(ids_a):,} prompts, {b.name} has {len(in_b):,}, and {len(shared):,} of them match"
    )
    if not shared:
        raise DataError(
            f"{counts}. Check the field of prompt ids (--id), or compare independent sets with --prompts independent."
        )
    if prompts == "same" and not len(ids_a) == len(in_b) == len(shared):
        raise DataError(f"{counts}. Expected the same prompts; --prompts matched compares those that match.")
    return _layout(a.responses, b.responses, shared, shared, is_paired=True)


def _independent(a: ResponseSet, b: ResponseSet) -> Layout:
    ids_a, ids_b = (tuple(dict.fromkeys(response.prompt for response in one.responses)) for one in (a, b))
    return _layout(a.responses, b.responses, ids_a, ids_b, is_paired=False)


def _layout(
    a: Sequence[Response],
    b: Sequence[Response],
    ids_a: Sequence[str],
    ids_b: Sequence[str],
    *,
    is_paired: bool,
) -> Layout:
    """The responses to these prompts; the others are left out."""
    kept, prompts, weights = [], [], []
    for responses, ids, sign in ((a, ids_a, 1.0), (b, ids_b, -1.0)):
        place = {prompt: i for i, prompt in enumerate(ids)}
        mine = [response for response in responses if response.prompt in place]
        prompt = np.array([place[response.prompt] for response in mine])
        kept.append(mine)
        prompts.append(prompt)
        weights.append(sign / (len(ids) * np.bincount(prompt)[prompt]))
    return Layout(
        responses=(*kept[0], *kept[1]),
        is_b_N=np.repeat([False, True], [len(kept[0]), len(kept[1])]),
        prompt_N=np.concatenate(prompts),
        weight_N=np.concatenate(weights),
        ids_a=tuple(ids_a),
        ids_b=tuple(ids_b),
        is_paired=is_paired,
    )


def subset(layout: Layout, is_kept_N: NDArray[np.bool_]) -> Layout:
    """The layout of some of the prompts, given as a choice of all their responses."""
    sides = []
    for is_side_N, ids in ((~layout.is_b_N, layout.ids_a), (layout.is_b_N, layout.ids_b)):
        kept = np.flatnonzero(is_side_N & is_kept_N)
        sides.append(
            ([layout.responses[i] for i in kept], [ids[i] for i in np.unique(layout.prompt_N[kept])])
        )
    (a, ids_a), (b, ids_b) = sides
    return _layout(a, b, ids_a, ids_b, is_paired=layout.is_paired)


def has_several(layout: Layout) -> NDArray[np.bool_]:
    """Which responses are to prompts with two or more in both sets: one response says nothing about a prompt's law."""
    if not layout.is_paired:
        return np.zeros(len(layout.responses), dtype=bool)
    num = len(layout.ids_a)
    count_a = np.bincount(layout.prompt_N[~layout.is_b_N], minlength=num)
    count_b = np.bincount(layout.prompt_N[layout.is_b_N], minlength=num)
    return ((count_a >= 2) & (count_b >= 2))[layout.prompt_N]


def first_half(ids: Sequence[str], seed: int) -> NDArray[np.bool_]:
    """A fixed random half of the prompts (the larger one if they are odd). It depends on the ids, not on their order."""
    keys = [hashlib.blake2b(f"{seed}\x1f{prompt}".encode(), digest_size=8).digest() for prompt in ids]
    ranked = sorted(range(len(keys)), key=lambda i: (keys[i], ids[i]))
    is_first_P = np.zeros(len(keys), dtype=bool)
    is_first_P[ranked[: -(-len(keys) // 2)]] = True
    return is_first_P


def by_prompt(
    layout: Layout, value_NK: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The mean of each column over the responses of a prompt: [P, K] of A and of B."""
    made = []
    for is_side_N, ids in ((~layout.is_b_N, layout.ids_a), (layout.is_b_N, layout.ids_b)):
        prompt = layout.prompt_N[is_side_N]
        sums = np.zeros((len(ids), value_NK.shape[1]))
        np.add.at(sums, prompt, value_NK[is_side_N])
        made.append(sums / np.bincount(prompt)[:, None])
    return made[0], made[1]


def shuffled_weights(layout: Layout, num: int, seed: int) -> tuple[Iterator[NDArray[np.float64]], bool]:
    """Weights as they would be if the two sets had one law: labels dealt anew. All deals if they are at most `num`
    (then True), else `num` drawn ones.

    Paired: labels move within a prompt, which is exact whatever the prompts are. Independent: a prompt's responses
    move together, as they are not independent of each other.
    """
    cut = int((~layout.is_b_N).sum())
    if layout.is_paired:
        sizes = np.bincount(layout.prompt_N[:cut]), np.bincount(layout.prompt_N[cut:])
        total = math.prod(math.comb(int(n + m), int(n)) for n, m in zip(*sizes, strict=True))
        if total <= num:
            return _all_within(layout, sizes), True
        return _drawn_within(layout, num, generator(seed, "discrepancy", "shuffle")), False
    pooled_N = layout.prompt_N + np.where(layout.is_b_N, len(layout.ids_a), 0)
    num_a, num_all = len(layout.ids_a), len(layout.ids_a) + len(layout.ids_b)
    each_N = 1 / np.bincount(pooled_N)[pooled_N]

    def dealt(members: Sequence[int] | NDArray[np.int64]) -> NDArray[np.float64]:
        is_a_P = np.zeros(num_all, dtype=bool)
        is_a_P[np.asarray(members)] = True
        return np.where(is_a_P[pooled_N], each_N / num_a, -each_N / (num_all - num_a))

    if math.comb(num_all, num_a) <= num:
        return (dealt(chosen) for chosen in itertools.combinations(range(num_all), num_a)), True
    rng = generator(seed, "discrepancy", "shuffle")
    return (dealt(rng.permutation(num_all)[:num_a]) for _ in range(num)), False


def _all_within(
    layout: Layout, sizes: tuple[NDArray[np.int64], NDArray[np.int64]]
) -> Iterator[NDArray[np.float64]]:
    """Every way to deal the labels within the prompts."""
    slots = [np.flatnonzero(layout.prompt_N == i) for i in range(len(layout.ids_a))]
    deals = [itertools.combinations(mine.tolist(), int(n)) for mine, n in zip(slots, sizes[0], strict=True)]
    for deal in itertools.product(*deals):
        weight_N = -1 / (len(layout.ids_a) * sizes[1][layout.prompt_N])
        for i, chosen in enumerate(deal):
            weight_N[list(chosen)] = 1 / (len(layout.ids_a) * sizes[0][i])
        yield weight_N


def _drawn_within(layout: Layout, num: int, rng: np.random.Generator) -> Iterator[NDArray[np.float64]]:
    """Labels dealt at random within the prompts."""
    slots = np.argsort(
        layout.prompt_N, kind="stable"
    )  # the places of a prompt side by side, those of A first
    dealt_N = layout.weight_N[slots]
    for _ in range(num):
        # Prompts keep their order, places within a prompt get a random one.
        shuffled = np.argsort(layout.prompt_N + rng.random(len(layout.prompt_N)))
        weight_N = np.empty_like(dealt_N)
        weight_N[shuffled] = dealt_N
        yield weight_N


def resampled_means(
    layout: Layout,
    a_PK: NDArray[np.float64],
    b_PK: NDArray[np.float64],
    num: int,
    seed: int,
) -> NDArray[np.float64]:
    """mean(A) - mean(B) of each column over prompts drawn with replacement: [num, K].

    Paired sets draw the same prompts for both, independent ones each their own.
    """
    rng = generator(seed, "discrepancy", "resample")

    def drawn(num_prompts: int) -> NDArray[np.float64]:
        return rng.multinomial(num_prompts, np.full(num_prompts, 1 / num_prompts), size=num) / num_prompts

    if layout.is_paired:
        return drawn(len(a_PK)) @ (a_PK - b_PK)
    return drawn(len(a_PK)) @ a_PK - drawn(len(b_PK)) @ b_PK

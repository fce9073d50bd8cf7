"""Rollouts against `model.generate`, at lengths with a long tail.

Both draw from the same random-weight model at temperature 1 with the same prompts, in one batch. A share of the
vocabulary ends a response, so lengths are close to geometric, with the same law for both; tokens differ (each has its own
random numbers), so what is compared is response tokens per second, those after a response's end not counted.

B sequences, T positions, V vocabulary.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedModel

from benchmarks.common import (
    Clock,
    Figure,
    Result,
    add_device,
    clock_name,
    clock_of,
    command_of,
    device_named,
    figure,
    gemm_gflops,
    interleaved,
    linear_flops_per_token,
    parser,
    speed_notes,
    target_on,
    wait_for_device,
    write,
)
from understudy.records import Prompt
from understudy.rollouts.hf import HFDecoder
from understudy.rollouts.sampler import Limits, sample_all

VOCAB = 256
NUM_EOS = 6
"""Of 256 almost equally likely tokens: a response ends with chance 1/43 at each token, median 30, mean 43."""
MAX_NEW_TOKENS = 256
TARGET = 1.5


@dataclass(frozen=True)
class Size:
    """A Llama-shaped model: layers, width, heads; `target`: whether the aim is stated for this size."""

    name: str
    layers: int
    width: int
    heads: int
    has_target: bool = True


SIZES = (Size("0.1M", 2, 64, 2, False), Size("1M", 5, 128, 4), Size("3M", 4, 256, 4), Size("10M", 6, 384, 6))
SMOKE = (Size("0.1M", 2, 64, 2, False),)


def make_model(size: Size, device: torch.device) -> PreTrainedModel:
    config = LlamaConfig(
        vocab_size=VOCAB,
        hidden_size=size.width,
        intermediate_size=4 * size.width,
        num_hidden_layers=size.layers,
        num_attention_heads=size.heads,
        num_key_value_heads=size.heads,
        max_position_embeddings=1024,
        bos_token_id=None,
        eos_token_id=None,
    )
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(config).to(device).eval()


def make_prompts(count: int) -> list[Prompt]:
    """8 to 31 tokens each."""
    rng = np.random.default_rng(0)
    return [
        Prompt(id=str(i), token_ids=tuple(rng.integers(NUM_EOS, VOCAB, 8 + rng.integers(24)).tolist()))
        for i in range(count)
    ]


@dataclass
class Runner:
    """One way to write responses; remembers how many tokens each call wrote."""

    write: Callable[[int], int]
    tokens: list[int]
    calls: int = 0

    def __call__(self) -> None:
        self.calls += 1
        self.tokens.append(self.write(self.calls))


def ours(model: PreTrainedModel, prompts: list[Prompt], limits: Limits) -> Runner:
    def responses(seed: int) -> int:
        found = sample_all(
            prompts,
            [(seed, p.id) for p in prompts],
            limits=limits,
            student=lambda: HFDecoder(model, vocab_size=VOCAB),
        )
        return sum(len(r.token_ids) for r in found)

    return Runner(responses, [])


def generate(model: PreTrainedModel, prompts: list[Prompt], limits: Limits) -> Runner:
    longest = max(len(p.token_ids) for p in prompts)
    token_BT = torch.zeros(len(prompts), longest, dtype=torch.long)
    mask_BT = torch.zeros_like(token_BT)
    for b, p in enumerate(prompts):
        token_BT[b, longest - len(p.token_ids) :] = torch.tensor(p.token_ids)
        mask_BT[b, longest - len(p.token_ids) :] = 1
    eos = sorted(limits.eos_ids)

    def responses(seed: int) -> int:
        torch.manual_seed(seed)
        written_BT: Any = model.generate(  # pyright: ignore[reportCallIssue]
            token_BT.to(model.device),
            attention_mask=mask_BT.to(model.device),
            do_sample=True,
            temperature=1.0,
            top_k=0,
            top_p=1.0,
            max_new_tokens=limits.max_new_tokens,
            eos_token_id=eos,
            pad_token_id=0,
        )
        ends_BT = torch.isin(written_BT[:, longest:], torch.tensor(eos, device=model.device))
        length_B = torch.where(ends_BT.any(1), ends_BT.long().argmax(1) + 1, ends_BT.shape[1])
        return int(length_B.sum())

    return Runner(responses, [])


def compare(
    size: Size, num_prompts: int, repeats: int, speed_gflops: float, device: torch.device
) -> tuple[list[Figure], dict[str, Any], dict[str, Any]]:
    model, prompts = make_model(size, device), make_prompts(num_prompts)
    limits = Limits(max_new_tokens=MAX_NEW_TOKENS, eos_ids=frozenset(range(NUM_EOS)))
    runners = {
        "ours": ours(model, prompts, limits),
        "generate": generate(model, prompts, limits),
    }
    timings = interleaved(runners, repeats=repeats)
    kinds: tuple[Clock, ...] = ("wall", "cpu")
    rates = {
        (name, kind): [
            # The warm-up call wrote tokens, too.
            count / t.seconds(kind)
            for count, t in zip(runners[name].tokens[1:], timings[name], strict=True)
        ]
        for name in runners
        for kind in kinds
    }

    def ratio(kind: Clock) -> list[float]:
        return [a / b for a, b in zip(rates["ours", kind], rates["generate", kind], strict=True)]

    where = f"{size.name} parameters, {num_prompts} prompts at once"
    target = target_on(device, cpu=TARGET) if size.has_target else None
    figures = [
        figure(f"tokens/s, ours / generate ({where})", ratio("wall"), target, ">="),
        figure(f"tokens per cpu second, ours / generate ({where})", ratio("cpu"), None, ">="),
    ]
    median = {f"{name}_tokens_per_second": statistics.median(rates[name, "wall"]) for name in runners}
    clock = clock_of(device)
    ours_seconds = 1 / statistics.median(rates["ours", clock])
    least = linear_flops_per_token(model) / speed_gflops / 1e9
    floor = {
        "gemm_gflops": speed_gflops,
        "linear_flops_per_token": linear_flops_per_token(model),
        "least_seconds_per_token": least,
        f"ours_{clock_name(device)}_seconds_per_token": ours_seconds,
        "ours_over_floor": ours_seconds / least,
    }
    return figures, {**median, **phases(model, prompts)}, floor


@torch.no_grad()
def phases(model: PreTrainedModel, prompts: list[Prompt], steps: int = 64) -> dict[str, float]:
    """Microseconds of one token-step of all prompts, by what they are spent on, 64 tokens into the responses.

    Wall time. On a GPU every part is waited for, so that the parts say where time goes but add up to more than a step takes.
    """
    decoder = HFDecoder(model, vocab_size=VOCAB)
    decoder.start(prompts)
    token_B = torch.zeros(len(prompts), dtype=torch.long, device=model.device)
    for _ in range(steps):
        decoder.step(token_B)
    spent = {"linear layers": 0.0, "attention": 0.0, "cache": 0.0}
    linear, attend = torch.nn.functional.linear, torch.nn.functional.scaled_dot_product_attention
    update = decoder.cache.update

    def counted(name: str, action: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            wait_for_device()
            start = time.perf_counter()
            found = action(*args, **kwargs)
            wait_for_device()
            spent[name] += time.perf_counter() - start
            return found

        return call

    try:
        torch.nn.functional.linear = counted("linear layers", linear)
        torch.nn.functional.scaled_dot_product_attention = counted("attention", attend)
        decoder.cache.update = counted("cache", update)
        wait_for_device()
        start = time.perf_counter()
        for _ in range(steps):
            decoder.step(token_B)
        wait_for_device()
        whole = time.perf_counter() - start
    finally:
        torch.nn.functional.linear, torch.nn.functional.scaled_dot_product_attention = linear, attend
    spent["the rest: norms, rotations, Python"] = whole - sum(spent.values())
    return {f"step_us: {name}": 1e6 * seconds / steps for name, seconds in spent.items()}


def main(arguments: Sequence[str]) -> None:
    options = parser("rollouts", __doc__)
    add_device(options)
    chosen = options.parse_args(arguments)
    device = device_named(chosen.device)
    torch.set_num_threads(1)
    figures: list[Figure] = []
    by_size: dict[str, Any] = {}
    floors: dict[str, Any] = {}
    speeds = [gemm_gflops(device=device)]
    for size in SMOKE if chosen.smoke else SIZES:
        for num_prompts in (4,) if chosen.smoke else (16, 64):
            found, spent, floor = compare(
                size, num_prompts, 1 if chosen.smoke else 7, speed_gflops=speeds[0], device=device
            )
            figures += found
            by_size[f"{size.name}, {num_prompts}"] = spent
            floors[f"{size.name}, {num_prompts}"] = floor
            speeds.append(gemm_gflops(device=device))
    result = Result(
        name="rollouts",
        question="How fast are responses with long-tailed lengths written, against model.generate?",
        figures=figures,
        command=command_of("rollouts", arguments),
        phases=by_size,
        floor=floors,
        notes=[
            "One thread. Response tokens up to the one that ends a response; the random numbers of the two differ.",
            "Phases: wall time, response tokens a second and microseconds of one token-step of the whole batch.",
            "The floor counts the weight matrices alone, at the speed of large square products measured once, at the "
            f"start of the run; it is compared with {clock_name(device)} seconds.",
            *speed_notes(speeds),
        ],
        device=device,
    )
    write(result, chosen.out)


if __name__ == "__main__":
    main(sys.argv[1:])

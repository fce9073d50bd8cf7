"""The method `grpo` against TRL 1.16.0's GRPOTrainer on one batch: advantages, loss and gradient of every weight.

TRL is no dependency, and this file is no test of the default run. Make an environment for it and run the file there:

    python -m venv trl-venv
    trl-venv/bin/pip install trl==1.16.0 torch
    PYTHONPATH=src trl-venv/bin/python tests/crosschecks/grpo_against_trl.py

TRL writes completions of a tiny random model, grades them with a function of the text, and computes its own advantages,
reference log-probabilities, loss and gradient. Ours start from the completions and rewards alone. The log-probabilities at
the draw are then moved at random, the same for both, so that ratios are clipped on either side. Prints one line a setting and
exits with 1 if a difference exceeds 1e-5 of the largest gradient, or 1e-5 of the loss.
"""

from __future__ import annotations

import copy
import sys
import tempfile
from typing import Any

import torch
import trl  # pyright: ignore[reportMissingImports]
from datasets import Dataset
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from understudy.methods import LossSettings, method_named
from understudy.objectives.policy import group_advantage
from understudy.objectives.weights import weighing
from understudy.records import Prompt, Trajectory
from understudy.trainer.collate import collate, micro_batches
from understudy.trainer.loss import StudentLoss, Term, gate_of, label, reference_logp

VERSION = "1.16.0"
LIMIT = 1e-5
VOCAB, GROUP, PROMPTS, LENGTH = 32, 4, 3, 10
CPU = torch.device("cpu")
# loss_type of TRL -> loss_norm of ours. Their mean over tokens (bnpo: of the batch, dapo: of the step) is one here.
NORMS = {"grpo": "sequence", "bnpo": "token", "dapo": "token", "dr_grpo": "constant"}


def tokenizer() -> PreTrainedTokenizerFast:
    words = {f"w{i}": i for i in range(VOCAB)}
    inner = Tokenizer(models.WordLevel(words, unk_token="w2"))
    inner.pre_tokenizer = pre_tokenizers.Whitespace()  # pyright: ignore[reportAttributeAccessIssue]
    return PreTrainedTokenizerFast(tokenizer_object=inner, eos_token="w0", pad_token="w1", unk_token="w2")


def model(seed: int) -> LlamaForCausalLM:
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=VOCAB,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=64,
        initializer_range=0.3,
        eos_token_id=0,
        pad_token_id=1,
        bos_token_id=None,
    )
    return LlamaForCausalLM(config)


def reward(completions: list[str], **_: Any) -> list[float]:
    """Of the text alone; the first prompt's group shares one reward, so that it has no variance."""
    return [0.5 if i < GROUP else (len(text) % 5) / 4 for i, text in enumerate(completions)]


def trainer(loss_type: str, *, rule: str, kl: float, entropy: float) -> trl.GRPOTrainer:
    # From a folder, because TRL loads the reference from where the student came from. In float64, because TRL pads prompts on
    # the left, which moves every rotary position.
    folder = tempfile.mkdtemp()
    model(0).save_pretrained(folder)
    student = LlamaForCausalLM.from_pretrained(folder, dtype=torch.float64)
    args = trl.GRPOConfig(
        output_dir=tempfile.mkdtemp(),
        use_cpu=True,
        bf16=False,
        per_device_train_batch_size=GROUP * PROMPTS,
        num_generations=GROUP,
        max_completion_length=LENGTH,
        loss_type=loss_type,
        scale_rewards="group" if rule == "grpo" else "none",
        beta=kl,
        use_bias_correction_kl=False,  # the published k3; their default also weighs it with the ratio
        entropy_coef=entropy,
        epsilon=0.2,
        epsilon_high=0.28,
        temperature=1.0,
        report_to="none",
        gradient_checkpointing=False,
    )
    rows = [{"prompt": " ".join(f"w{3 + i + k}" for k in range(i + 2))} for i in range(PROMPTS)]
    return trl.GRPOTrainer(
        model=student,
        reward_funcs=reward,
        args=args,
        train_dataset=Dataset.from_list(rows),
        processing_class=tokenizer(),
    )


def by_trl(loss_type: str, rule: str, kl: float, entropy: float):
    """(their inputs, weights before, loss, gradients by name)."""
    t = trainer(loss_type, rule=rule, kl=kl, entropy=entropy)
    t.model.train()
    t.current_gradient_accumulation_steps = 1
    rows: list[dict[str, Any]] = [dict(row) for row in t.train_dataset for _ in range(GROUP)]  # pyright: ignore
    torch.manual_seed(1)
    inputs = t._generate_and_score_completions(rows)
    start = copy.deepcopy(t.accelerator.unwrap_model(t.model))
    if kl > 0:
        # The reference is the start; elsewhere the KL would be 0 and so its gradient.
        with torch.no_grad():
            for p in t.model.parameters():
                p.add_(0.02 * torch.randn(p.shape, generator=torch.Generator().manual_seed(p.numel())))
    now = copy.deepcopy(t.accelerator.unwrap_model(t.model))
    ids = torch.cat([inputs["prompt_ids"], inputs["completion_ids"]], dim=1)
    mask = torch.cat([inputs["prompt_mask"], inputs["completion_mask"]], dim=1)
    with torch.no_grad():
        logp, _, _ = t._get_per_token_logps_and_entropies(
            t.model, ids, mask, inputs["completion_ids"].shape[1]
        )
    noise = torch.randn(logp.shape, generator=torch.Generator().manual_seed(7))
    inputs["old_per_token_logps"] = logp + 0.25 * noise
    loss = t._compute_loss(t.model, inputs)
    loss.backward()
    grads = {n: p.grad for n, p in t.accelerator.unwrap_model(t.model).named_parameters()}
    return inputs, start, now, loss.item(), grads


def trajectories(inputs: dict[str, torch.Tensor], advantage: torch.Tensor) -> list[Trajectory]:
    made = []
    for i, (ids, mask) in enumerate(zip(inputs["prompt_ids"], inputs["prompt_mask"], strict=True)):
        length = int(inputs["completion_mask"][i].sum())
        made.append(
            Trajectory(
                prompt=Prompt(id=str(i // GROUP), token_ids=tuple(ids[mask.bool()].tolist())),
                sample_index=i % GROUP,
                response_ids=tuple(inputs["completion_ids"][i, :length].tolist()),
                is_student=(True,) * length,
                logp=tuple(inputs["old_per_token_logps"][i, :length].tolist()),
                temperature=1.0,
                finish="length",
                round=0,
                student_version=0,
                advantage=float(advantage[i]),
            )
        )
    return made


def by_us(inputs, start, now, *, loss_norm: str, rule: str, kl: float, entropy: float):
    method = method_named("grpo")
    given = {"clip_low": 0.2, "clip_high": 0.28, "kl": kl, "entropy": entropy}
    options = method.resolve_options(given)
    objective = method.objective().with_options(options)
    texts = tokenizer().batch_decode(inputs["completion_ids"], skip_special_tokens=True)
    advantage_PG = group_advantage(torch.tensor(reward(texts)).view(PROMPTS, GROUP), rule)  # pyright: ignore
    student = StudentLoss(now, VOCAB)
    weigh = weighing(loss_norm, max_tokens=LENGTH)  # pyright: ignore[reportArgumentType]
    # Five a piece: the denominator is that of the whole.
    pieces = [collate(part, CPU) for part in micro_batches(trajectories(inputs, advantage_PG.flatten()), 5)]
    amount = sum(weigh(gate_of(method, batch)).amount for batch in pieces)
    total, clipped, count = 0.0, 0.0, 0
    for batch in pieces:
        gate_BT = gate_of(method, batch)
        labels = label(batch, gate_BT, objective, None, 0)
        if objective.reference:
            near_N = reference_logp(start, VOCAB, batch, labels)
            labels.given_N["reference_logp_n"] = near_N  # pyright: ignore[reportIndexIssue]
        row_loss = objective.build(LossSettings(options=options))
        ((loss, value_N),) = student(batch.token_BT, [Term(labels, row_loss, weigh(gate_BT).weight_N)])
        (loss / amount).backward()
        total += loss.item() / amount
        clipped, count = clipped + value_N[:, 1].sum().item(), count + len(value_N)
    return advantage_PG.flatten(), total, {n: p.grad for n, p in now.named_parameters()}, clipped / count


def main() -> int:
    if trl.__version__ != VERSION:
        sys.stderr.write(f"trl {VERSION} expected, found {trl.__version__}.\n")
        return 1
    worst = 0.0
    cases = [(t, "grpo", kl, 0.0) for t in NORMS for kl in (0.0, 0.1)]
    # Theirs is a mean over tokens whatever the loss is normalised by; ours has that only with loss_norm = token.
    cases += [("bnpo", "grpo", 0.1, 0.02), ("dapo", "dr-grpo", 0.0, 0.02), ("dr_grpo", "dr-grpo", 0.05, 0.0)]
    for loss_type, rule, kl, entropy in cases:
        inputs, start, now, their_loss, their_grads = by_trl(loss_type, rule, kl, entropy)
        settings = {"loss_norm": NORMS[loss_type], "rule": rule, "kl": kl, "entropy": entropy}
        advantage, our_loss, our_grads, clip_rate = by_us(inputs, start, now, **settings)  # pyright: ignore
        largest = max(g.abs().max().item() for g in their_grads.values())
        gap = max((our_grads[n] - g).abs().max().item() for n, g in their_grads.items()) / largest
        advantage_gap = (advantage - inputs["advantages"]).abs().max().item()
        loss_gap = abs(our_loss - their_loss) / abs(their_loss)
        worst = max(worst, gap, loss_gap, advantage_gap)
        sys.stdout.write(
            f"{loss_type:8s} {rule:8s} kl {kl:<5g} entropy {entropy:<5g} loss {their_loss:+.6f} off by {loss_gap:.1e}, "
            f"gradient (largest {largest:.3f}) by {gap:.1e}, advantages by {advantage_gap:.1e}; clipped {clip_rate:.0%}\n"
        )
    return int(not worst <= LIMIT)


if __name__ == "__main__":
    sys.exit(main())

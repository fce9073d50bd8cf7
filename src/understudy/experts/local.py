"""A causal language model on this machine as the expert: used exactly, through its hidden states and head."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from understudy.models import check_head, head_of, hidden_states, load_model
from understudy.objectives.laws import HeadLaw, Law
from understudy.records import TrainBatch
from understudy.rollouts.hf import HFDecoder
from understudy.rollouts.sampler import Decoder

BFLOAT16_FROM = 3_000_000
"""Parameters from which scoring in bfloat16 is faster on a CPU that has instructions for it."""


@dataclass(frozen=True, eq=False)
class LocalExpert:
    """`vocab_size`: the ids that count; rows of the head beyond the tokenizer's are padding and left out."""

    model: nn.Module
    vocab_size: int
    identity: str = field(default="")

    @torch.no_grad()
    def law(self, batch: TrainBatch, gate_BT: Tensor) -> Law:
        # In the precision it was loaded in, whatever the student trains in: one law, offline and online.
        with torch.autocast(batch.token_BT.device.type, enabled=False):
            hidden_BTD = hidden_states(self.model, batch.token_BT)
        # The law of token t stands at position t - 1.
        return HeadLaw(hidden_BTD[:, :-1][gate_BT[:, 1:]], head_of(self.model, self.vocab_size))

    def decoder(self) -> Decoder:
        return HFDecoder(self.model, vocab_size=self.vocab_size, ignores_autocast=True)


def load_local_expert(
    checkpoint: str, *, vocab_size: int | None, dtype: torch.dtype | None, device: torch.device
) -> LocalExpert:
    """Load, check and fingerprint an expert.

    Args:
        dtype: None: bfloat16 where that is faster (`is_faster_in_bfloat16`), else float32.
    Raises:
        ModelError: it cannot be loaded, holds NaN, or computes its logits in a way the exact losses do not know.
    """
    model = load_model(checkpoint, dtype=dtype or torch.float32)
    if dtype is None:
        dtype = torch.bfloat16 if is_faster_in_bfloat16(model, device) else torch.float32
    model = model.to(device=device, dtype=dtype)  # pyright: ignore[reportArgumentType, reportCallIssue]
    model.requires_grad_(False)
    check_head(model, checkpoint)
    size = vocab_size or model.get_output_embeddings().weight.shape[0]  # pyright: ignore
    return LocalExpert(model, size, identity=f"local:{fingerprint(model)}:{dtype}")


def is_faster_in_bfloat16(model: nn.Module, device: torch.device) -> bool:
    """Whether a forward pass gains from bfloat16: by size and processor alone, so that the law is the same every time.

    On a CPU smaller models lose more to the conversions than the products gain, and a processor without instructions
    for them is slower at any size.
    """
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    size = sum(p.numel() for p in model.parameters())
    return device.type == "cpu" and size >= BFLOAT16_FROM and _multiplies_bfloat16()


def _multiplies_bfloat16() -> bool:
    # Older versions of torch cannot say; float32 is never wrong.
    found = getattr(torch.cpu, "get_capabilities", dict)()
    return bool(found.get("avx512_bf16") or found.get("amx_bf16"))


def fingerprint(model: nn.Module) -> str:
    """A hash of all weights: the same for the same model wherever its files lie."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]

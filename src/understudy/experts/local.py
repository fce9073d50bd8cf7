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
    checkpoint: str, *, vocab_size: int | None, dtype: torch.dtype, device: torch.device
) -> LocalExpert:
    """Load, check and fingerprint an expert.

    Raises:
        ModelError: it cannot be loaded, holds NaN, or computes its logits in a way the exact losses do not know.
    """
    model = load_model(checkpoint, dtype=dtype).to(device)  # pyright: ignore[reportArgumentType]
    model.requires_grad_(False)
    check_head(model, checkpoint)
    size = vocab_size or model.get_output_embeddings().weight.shape[0]  # pyright: ignore
    return LocalExpert(model, size, identity=f"local:{fingerprint(model)}:{dtype}")


def fingerprint(model: nn.Module) -> str:
    """A hash of all weights: the same for the same model wherever its files lie."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]

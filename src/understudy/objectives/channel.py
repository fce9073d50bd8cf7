"""A known label channel: what a law looks like after a noisy expert has passed it on.

n rows of one tile, V vocabulary, K tokens among which a wrong label is drawn.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from understudy.objectives.rows import RowLoss, Rows


@dataclass(frozen=True, eq=False)
class NoiseChannel:
    """The channel p -> (1 - eta) p + eta nu: with probability eta the label is drawn from nu, not from p.

    `eta`: in [0, 1). `nu_V`: probabilities [V] that sum to 1, any float dtype.
    """

    eta: float
    nu_V: Tensor

    def __post_init__(self) -> None:
        if not 0 <= self.eta < 1:
            raise ValueError(
                f"eta must be in [0, 1), got {self.eta}: at 1 the labels say nothing about the expert."
            )
        if self.nu_V.dim() != 1 or not self.nu_V.is_floating_point():
            found = f"shape {tuple(self.nu_V.shape)} and {self.nu_V.dtype}"
            raise ValueError(f"nu_V must be one float probability a token, shape (V,), got {found}.")
        total = float(self.nu_V.double().sum())
        if not (bool((self.nu_V >= 0).all()) and abs(total - 1) < 1e-3):
            low = float(self.nu_V.min())
            raise ValueError(
                f"nu_V must be >= 0 and sum to 1, got least {low:g} and sum {total:g}: normalise it."
            )
        # Half precision and hand-typed laws sum to 1 only roughly; what is pushed must be a law.
        object.__setattr__(self, "nu_V", self.nu_V.detach().double() / total)

    @classmethod
    def wrong_token(cls, eta: float, allowed_ids: Sequence[int], vocab_size: int) -> NoiseChannel:
        """With probability eta the label becomes a uniformly random *other* token of the K allowed ones.

            p -> (1 - eta) p + eta (1 - p) / (K - 1) = (1 - eta') p + eta' / K,    eta' = eta K / (K - 1)

        so this is the plain channel of rate eta' with nu uniform on the allowed tokens. Assumes that the
        clean law lives on them.

        Args:
            eta: probability of a wrong label, >= 0 and below (K - 1) / K, where nothing of p is left.
            allowed_ids: the K >= 2 distinct token ids a label can be.
            vocab_size: V.
        Raises:
            ValueError: eta, the ids or their number are out of range.
        """
        ids = sorted(set(allowed_ids))
        if len(ids) < 2 or len(ids) != len(allowed_ids) or ids[0] < 0 or ids[-1] >= vocab_size:
            raise ValueError(
                f"allowed_ids must be 2 or more distinct ids in 0..{vocab_size - 1}, got {list(allowed_ids)}."
            )
        highest = (len(ids) - 1) / len(ids)
        if not 0 <= eta < highest:
            raise ValueError(
                f"eta must be in [0, {highest:g}) for {len(ids)} allowed tokens, got {eta}: "
                "from there on the labels do not point to the expert's token."
            )
        nu_V = torch.zeros(vocab_size, dtype=torch.float64)
        nu_V[ids] = 1 / len(ids)
        return cls(eta * len(ids) / (len(ids) - 1), nu_V)

    def push(self, logp_nV: Tensor) -> Tensor:
        """Log-probabilities of the noisy label, [..., V], in the dtype given; the gradient flows through.

            log((1 - eta) p(v) + eta nu(v)),    d / d log p(v) = (1 - eta) p(v) / ((1 - eta) p(v) + eta nu(v))

        -inf stays -inf, with gradient 0, where neither p nor the noise can emit the token.

        Raises:
            ValueError: another vocabulary size than that of nu_V.
        """
        noise_logp_V = self.noise(logp_nV.shape[-1]).log().to(logp_nV)
        clean_logp_nV = logp_nV + math.log1p(-self.eta)
        reachable_nV = (clean_logp_nV > -math.inf) | (noise_logp_V > -math.inf)
        # Replace before adding: logaddexp(-inf, -inf) has a NaN gradient.
        noisy_logp_nV = clean_logp_nV.where(reachable_nV, 0).logaddexp(noise_logp_V.where(reachable_nV, 0))
        return noisy_logp_nV.where(reachable_nV, -math.inf)

    def noise(self, vocab_size: int) -> Tensor:
        """eta nu, [V] in float64: the part of the noisy law that the clean one does not move.

        Raises:
            ValueError: another vocabulary size than that of nu_V.
        """
        if vocab_size != self.nu_V.shape[0]:
            raise ValueError(
                f"the channel is over {self.nu_V.shape[0]} tokens, the law over {vocab_size}: "
                "build it with the vocabulary size of the student."
            )
        return self.eta * self.nu_V


@dataclass(frozen=True, eq=False)
class ThroughChannel:
    """A row loss of the noised student; see `through_channel`."""

    row_loss: RowLoss
    channel: NoiseChannel

    def __call__(self, student_logp_nV: Tensor, rows: Rows) -> Tensor:
        return self.row_loss(self.channel.push(student_logp_nV), rows)


def through_channel(row_loss: RowLoss, channel: NoiseChannel) -> RowLoss:
    """The row loss of the *noised* student: its law goes through the channel before it meets noisy labels.

    Its optimum is a clean student. With `against_expert(forward_kl_from_logp)` it is KL(noisy expert ||
    noised student); with `single_label_forward_kl` it is noise-aware cross-entropy, online or on fixed data.
    Not for `policy_gradient_reverse_kl`: a rollout token is a sample of the student, not of the noised
    student.

    Source: the noised policy pi_eta of NAIL (arXiv:2606.30923); its experiments compare with the plain
        student instead.
    """

    return ThroughChannel(row_loss, channel)

"""The repeatability check must see what it exists for: noise in scores, neighbours, and a sampler of another law."""

from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from small import make_model, make_prompts
from understudy.doctor.numbers import REPEAT_LIMIT_NATS, check_noise, check_repeatability
from understudy.experts.local import LocalExpert
from understudy.experts.noisy import Absorbing, Additive
from understudy.objectives.laws import DenseLaw, Law
from understudy.records import TrainBatch
from understudy.rollouts.sampler import Decoder, Limits

LIMITS = Limits(max_new_tokens=5)
SCORER = LocalExpert(make_model(), 24)
PROMPTS = make_prompts([2, 5, 3])
CPU = torch.device("cpu")


@dataclass(frozen=True, eq=False)
class Broken:
    """An expert with one flaw."""

    flaw: str
    vocab_size: int = 24
    identity: str = "broken"

    def law(self, batch: TrainBatch, gate_BT: Tensor) -> Law:
        law = SCORER.law(batch, gate_BT)
        logp_NV = law.logp(0, law.num_rows)
        if self.flaw == "random":
            logp_NV = (logp_NV + 0.01 * torch.randn_like(logp_NV)).log_softmax(-1)
        if self.flaw == "neighbours" and len(batch.trajectories) > 1:
            logp_NV = (1.01 * logp_NV).log_softmax(-1)
        return DenseLaw(logp_NV)

    def decoder(self) -> Decoder:
        other = LocalExpert(make_model(seed=1), 24) if self.flaw == "sampler" else SCORER
        return other.decoder()


def status(flaw: str, dtype: torch.dtype = torch.float32) -> str:
    return check_repeatability("expert", Broken(flaw), PROMPTS, LIMITS, dtype, CPU).status


def test_a_sound_model_repeats():
    found = check_repeatability("student", SCORER, PROMPTS, LIMITS, torch.float32, CPU)
    assert found.status == "ok"
    assert "over 15 tokens" in found.found
    assert status("none") == "ok"


@pytest.mark.parametrize(
    ("flaw", "comparison"),
    [
        ("random", "scored twice"),
        ("neighbours", "alone or in a padded batch"),
        ("sampler", "sampled or scored"),
    ],
)
def test_each_flaw_is_seen_by_the_comparison_that_is_for_it(flaw, comparison):
    torch.manual_seed(0)
    found = check_repeatability("expert", Broken(flaw), PROMPTS, LIMITS, torch.float32, CPU)
    assert found.status == "problem"
    assert "Do not train on it" in found.fix
    value = float(found.found.split(f"{comparison}: ")[1].split(",")[0].split(" ")[0])
    assert value > REPEAT_LIMIT_NATS[torch.float32]


def test_noise_is_judged_on_the_path_that_greedy_decoding_takes():
    """A sampled path leaves the expert's own, and after that the absorbing law is uniform: that is no fault of eta."""
    noise = Absorbing(Additive(0.3, tuple(range(24))))
    assert check_noise(SCORER, noise, PROMPTS, LIMITS, CPU).status == "ok"


def test_half_precision_may_differ_more_and_is_told_what_to_do():
    torch.manual_seed(0)
    assert status("random", torch.bfloat16) == "ok"
    assert status("sampler", torch.bfloat16) == "problem"
    found = check_repeatability("expert", Broken("sampler"), PROMPTS, LIMITS, torch.bfloat16, CPU)
    assert "float32" in found.fix
    assert (
        REPEAT_LIMIT_NATS[torch.float32]
        < REPEAT_LIMIT_NATS[torch.float16]
        < REPEAT_LIMIT_NATS[torch.bfloat16]
    )

"""The repeatability check must see what it exists for: noise in scores, neighbours, and a sampler of another law."""

from dataclasses import dataclass

import pytest
import torch
from small import make_model, make_prompts
from torch import Tensor

from understudy.doctor.numbers import REPEAT_LIMIT_NATS, check_repeatability
from understudy.experts.local import LocalExpert
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


@pytest.mark.parametrize("flaw", ["random", "neighbours", "sampler"])
def test_each_flaw_is_seen(flaw):
    torch.manual_seed(0)
    found = check_repeatability("expert", Broken(flaw), PROMPTS, LIMITS, torch.float32, CPU)
    assert found.status == "problem"
    assert "Do not train on it" in found.fix


def test_half_precision_may_differ_more_and_is_told_what_to_do():
    torch.manual_seed(0)
    assert status("random", torch.bfloat16) == "ok"
    assert status("sampler", torch.bfloat16) == "problem"
    found = check_repeatability("expert", Broken("sampler"), PROMPTS, LIMITS, torch.bfloat16, CPU)
    assert "float32" in found.fix
    assert REPEAT_LIMIT_NATS[torch.float32] < REPEAT_LIMIT_NATS[torch.float16] < REPEAT_LIMIT_NATS[torch.bfloat16]

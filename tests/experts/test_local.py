"""A model as expert: its own logits at the position before the token, cut to the ids that count."""

from __future__ import annotations

import pytest
import torch

from small import FAMILIES, LOGP_TOLERANCE, VOCAB, as_trajectories, make_model, make_prompts, respond
from understudy.experts import local
from understudy.experts.local import LocalExpert, fingerprint, load_local_expert
from understudy.rollouts.sampler import Limits
from understudy.trainer.collate import collate


@pytest.mark.parametrize("family", FAMILIES)
def test_the_law_of_a_token_is_the_model_before_it(family):
    """Row by row, unpadded, by the model's own forward pass. Fails if the law is read at the token itself, if
    padding is seen, or if the head lacks its soft cap or scale."""
    model = make_model(family, seed=40)
    prompts = make_prompts((5, 2, 8, 3), seed=41)
    responses = respond(model, prompts, limits=Limits(max_new_tokens=6, eos_ids=frozenset({2, 9, 13})))
    batch = collate(as_trajectories(prompts, responses), torch.device("cpu"))
    law = LocalExpert(model, VOCAB).law(batch, batch.is_response_BT)
    expected = []
    for p, r in zip(prompts, responses, strict=True):
        with torch.no_grad():
            logits = model(torch.tensor([p.token_ids + r.token_ids])).logits[0]
        expected.append(logits[len(p.token_ids) - 1 : -1].log_softmax(-1))
    torch.testing.assert_close(law.logp(0, law.num_rows), torch.cat(expected), rtol=0, atol=LOGP_TOLERANCE)


def test_rows_beyond_the_vocabulary_are_left_out_and_the_rest_sums_to_one():
    model = make_model(seed=42)
    prompts = make_prompts((3, 3), vocab=20)
    responses = respond(model, prompts, limits=Limits(max_new_tokens=3), vocab=20)
    batch = collate(as_trajectories(prompts, responses), torch.device("cpu"))
    law = LocalExpert(model, 20).law(batch, batch.is_response_BT)
    logp_NV = law.logp(0, law.num_rows)
    assert logp_NV.shape == (6, 20)
    torch.testing.assert_close(logp_NV.exp().sum(-1), torch.ones(6))


def test_the_identity_is_that_of_the_weights(tmp_path):
    """The same weights in another folder are the same expert; one changed weight or another dtype is another."""
    model = make_model(seed=43)
    for name in ("here", "there"):
        model.save_pretrained(tmp_path / name)
    before = fingerprint(model)
    with torch.no_grad():
        model.get_output_embeddings().weight[3, 3] += 1e-3  # pyright: ignore
    assert fingerprint(model) != before
    model.save_pretrained(tmp_path / "changed")

    def identity(name: str, dtype: torch.dtype = torch.float32) -> str:
        expert = load_local_expert(
            str(tmp_path / name), vocab_size=VOCAB, dtype=dtype, device=torch.device("cpu")
        )
        assert not any(p.requires_grad for p in expert.model.parameters())
        return expert.identity

    assert identity("here") == identity("there")
    assert len({identity("here"), identity("changed"), identity("here", torch.bfloat16)}) == 3


@pytest.mark.parametrize(
    ("size", "has_instructions", "expected"),
    [(10, True, torch.bfloat16), (10, False, torch.float32), (10**9, True, torch.float32)],
)
def test_auto_precision_goes_by_size_and_processor(tmp_path, monkeypatch, size, has_instructions, expected):
    """Fails if a small expert, or one on a processor without the instructions, is scored in bfloat16, or a large one is not."""
    monkeypatch.setattr(local, "BFLOAT16_FROM", size)
    monkeypatch.setattr(local, "_multiplies_bfloat16", lambda: has_instructions)
    make_model("llama", seed=3).save_pretrained(tmp_path)
    expert = load_local_expert(str(tmp_path), vocab_size=None, dtype=None, device=torch.device("cpu"))
    assert next(expert.model.parameters()).dtype is expected
    assert str(expected) in expert.identity

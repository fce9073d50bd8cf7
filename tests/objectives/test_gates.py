"""Gates select by position; a policy gradient stands on student tokens only."""

from __future__ import annotations

import pytest
import torch

from understudy.objectives.gates import require_student_only, response_gate, student_gate

# prompt, expert's token, student's token, padding
RESPONSE = torch.tensor([[False, True, True, False]])
STUDENT = torch.tensor([[False, False, True, False]])


def test_gates_by_hand():
    assert response_gate(RESPONSE, STUDENT).tolist() == [[False, True, True, False]]
    assert student_gate(RESPONSE, STUDENT).tolist() == [[False, False, True, False]]


def test_a_student_mark_outside_the_response_opens_nothing():
    everywhere = torch.ones_like(STUDENT)
    assert student_gate(RESPONSE, everywhere).tolist() == RESPONSE.tolist()


def test_student_tokens_carry_a_policy_gradient():
    require_student_only(student_gate(RESPONSE, STUDENT), STUDENT)
    require_student_only(torch.zeros_like(RESPONSE), torch.zeros_like(STUDENT))


def test_other_tokens_do_not():
    with pytest.raises(
        ValueError, match=r"got 1 gated tokens of another origin \(first: sequence 0, position 1\)"
    ):
        require_student_only(response_gate(RESPONSE, STUDENT), STUDENT)


@pytest.mark.parametrize("check", [response_gate, student_gate, require_student_only])
def test_masks_must_fit_and_be_bool(check):
    with pytest.raises(ValueError, match=r"\(1, 4\).*\(1, 3\)"):
        check(RESPONSE, STUDENT[:, :3])
    with pytest.raises(ValueError, match=r"masks must be bool, got torch.int64 and torch.bool"):
        check(RESPONSE.long(), STUDENT)

"""The bandit family behind the offline lower bound: its worlds, its learners, their exact risks.

X contexts, A = 3 actions y1, y2, y3 (indices 0, 1, 2), R repetitions, K = 2^X students, S secrets, F floors. Each
context x hides a secret s_x in {y2, y3}. Students are the deterministic maps into {y2, y3}; the expert plays y1 with
probability 1 - 1/C and s_x otherwise; y1 and s_x are rewarded. No student can play y1, so the expert is outside the
class unless C = 1, and only one demonstration in C says anything about the secret.

A context law [X] may sum to less than one: the rest is a context where all students agree and are right.

Source: arXiv:2606.30445 Thm 1 and its proof; the exact risks are DERIVED.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product

import numpy as np

Array = np.ndarray

NUM_ACTIONS = 3
SHOWN, FIRST, SECOND = 0, 1, 2
"""y1 (the expert's habit, which no student can imitate), y2 and y3 (what students choose between)."""


def require_world(context_prob_X: Array, coverage: float, num_demos: int = 1) -> None:
    """Refuse a context law that is none, a coverage below one, or no data."""
    if context_prob_X.ndim != 1 or context_prob_X.min() < 0 or context_prob_X.sum() > 1 + 1e-9:
        raise ValueError(f"context_prob_X must be [X], >= 0, with a sum of at most 1, got {context_prob_X}.")
    if coverage < 1 or num_demos < 1:
        raise ValueError(f"coverage >= 1 and num_demos >= 1 expected, got {coverage} and {num_demos}.")


def printed_context_law(num_contexts: int, coverage: float, num_demos: int) -> Array:
    """The law of the printed proof: X - 1 rare contexts at zeta = min(C / N, 1 / X), the rest on the last one.

    With one context (K = 2) nothing is rare: see `sharp_context_law`.
    """
    if num_contexts < 1:
        raise ValueError(f"at least one context expected, got {num_contexts}.")
    zeta = min(coverage / num_demos, 1 / num_contexts)
    context_prob_X = np.full(num_contexts, zeta)
    context_prob_X[-1] = 1 - (num_contexts - 1) * zeta
    require_world(context_prob_X, coverage, num_demos)
    return context_prob_X


def sharp_context_law(num_contexts: int, coverage: float, num_demos: int) -> Array:
    """DERIVED: all X contexts rare at zeta = min(C / (N + 1), 1 / X), the rest where all students agree.

    zeta = C / (N + 1) maximises zeta (1 - zeta / C)^N, what one rare context costs. Serves K = 2 too.
    """
    if num_contexts < 1:
        raise ValueError(f"at least one context expected, got {num_contexts}.")
    context_prob_X = np.full(num_contexts, min(coverage / (num_demos + 1), 1 / num_contexts))
    require_world(context_prob_X, coverage, num_demos)
    return context_prob_X


def expert_law(secret_X: Array, coverage: float) -> Array:
    """The expert [X, A]: y1 with probability 1 - 1/C, the secret with 1/C."""
    if not np.isin(secret_X, (FIRST, SECOND)).all():
        raise ValueError(f"secrets must be {FIRST} or {SECOND}, got {secret_X}.")
    expert_XA = np.zeros((len(secret_X), NUM_ACTIONS))
    expert_XA[:, SHOWN] = 1 - 1 / coverage
    expert_XA[np.arange(len(secret_X)), secret_X] = 1 / coverage
    return expert_XA


def reward_table(secret_X: Array) -> Array:
    """Reward [X, A]: 1 for y1 and for the secret, else 0."""
    reward_XA = np.zeros((len(secret_X), NUM_ACTIONS))
    reward_XA[:, SHOWN] = 1
    reward_XA[np.arange(len(secret_X)), secret_X] = 1
    return reward_XA


def student_law(choice_X: Array) -> Array:
    """The deterministic student [X, A] that plays choice_X."""
    return np.eye(NUM_ACTIONS)[choice_X]


def all_students(num_contexts: int) -> Array:
    """Every student of the class as choices [K, X], K = 2^X."""
    return np.array(list(product((FIRST, SECOND), repeat=num_contexts)))


def _missed(prob_X: Array, num: int) -> Array:
    """(1 - p)^n, exact for tiny p, 0 for p = 1."""
    with np.errstate(divide="ignore"):
        return np.exp(num * np.log1p(-np.minimum(prob_X, 1)))


def offline_risk(context_prob_X: Array, coverage: float, num_demos: int) -> float:
    """1 - E V of the best offline student within the class, in [0, 1/2]:

        1/2 sum_x D(x) (1 - D(x) / C)^N

    Under a uniform secret nothing is known where no demonstration other than y1 was seen, so every learner errs
    there with probability 1/2; elsewhere the secret was shown. The learner that guesses uniformly has this risk for
    every secret, so it is minimax within the family and not only Bayes.

    Args:
        context_prob_X: the law of the contexts that hide a secret.
        coverage: C >= 1, sup pi*/pi_e.
        num_demos: N >= 1.
    Source: DERIVED from the construction of arXiv:2606.30445 Thm 1.
    """
    require_world(context_prob_X, coverage, num_demos)
    return float(0.5 * (context_prob_X * _missed(context_prob_X / coverage, num_demos)).sum())


def online_risk(context_prob_X: Array, num_prompts: int) -> float:
    """1 - E V of the student that asks for the expert's density of its own action, one question a prompt:

        1/2 sum_x D(x) (1 - D(x))^N

    One question at a context reveals its secret, whatever C is: only contexts never visited are guessed.

    Source: DERIVED for the online access model of arXiv:2606.30445.
    """
    require_world(context_prob_X, 1.0, num_prompts)
    return float(0.5 * (context_prob_X * _missed(context_prob_X, num_prompts)).sum())


def copying_risk(context_prob_X: Array, num_demos: int) -> float:
    """1 - E V of a student outside the class that repeats the demonstrations, and is uniform where it saw none:

        1/3 sum_x D(x) (1 - D(x))^N

    Every demonstrated action is rewarded, y1 too: without the restriction to the class there is no factor C.

    Source: DERIVED.
    """
    require_world(context_prob_X, 1.0, num_demos)
    return float((context_prob_X * _missed(context_prob_X, num_demos)).sum() / 3)


def family_risk(num_contexts: int, coverage: float, num_demos: int) -> float:
    """Offline risk in the printed family."""
    return offline_risk(printed_context_law(num_contexts, coverage, num_demos), coverage, num_demos)


def family_online_risk(num_contexts: int, coverage: float, num_prompts: int) -> float:
    """Online risk in the printed family: C enters through the context law alone."""
    return online_risk(printed_context_law(num_contexts, coverage, num_prompts), num_prompts)


def sharp_risk(num_contexts: int, coverage: float, num_demos: int) -> float:
    """Offline risk in the family with every secret rare."""
    return offline_risk(sharp_context_law(num_contexts, coverage, num_demos), coverage, num_demos)


def draw_counts(
    context_prob_X: Array,
    secret_X: Array,
    coverage: float,
    num_demos: int,
    num: int,
    rng: np.random.Generator,
) -> Array:
    """How often each (context, action) was demonstrated, [R, X, A]: the order of the demonstrations says nothing."""
    require_world(context_prob_X, coverage, num_demos)
    cells_XA = context_prob_X[:, None] * expert_law(secret_X, coverage)
    rest = max(0.0, 1 - cells_XA.sum())
    law = np.append(cells_XA.ravel(), rest)
    drawn = rng.multinomial(num_demos, law / law.sum(), size=num)[:, :-1]
    return drawn.reshape(num, *cells_XA.shape)


def offline_students(counts_RXA: Array, rng: np.random.Generator) -> Array:
    """Choices [R, X] of a maximum-likelihood student with a floor: the more frequent of y2 and y3, a coin for ties.

    Any floor gives the same maximisers (`floored_log_likelihood`); y1 counts the same for every student.
    """
    # 1: count y2 and y3 for each context; y1 says nothing, as no student can play it
    lead_RX = counts_RXA[..., FIRST] - counts_RXA[..., SECOND]
    # 2: no count, no information: guess
    coin_RX = rng.integers(FIRST, SECOND + 1, size=lead_RX.shape)
    # 3: else play what was seen
    return np.where(lead_RX == 0, coin_RX, np.where(lead_RX > 0, FIRST, SECOND))


def online_students(visits_RX: Array, expert_XA: Array, rng: np.random.Generator) -> Array:
    """Choices [R, X] of a student that plays y2 at its first visit to a context and is told log pi_e(y2 | x)."""
    # 1: the answer for the student's own action y2 at each context, heard only where it was visited
    with np.errstate(divide="ignore"):
        answer_X = np.log(expert_XA[:, FIRST])
    # 2: a finite answer means y2 is the secret, -inf means y3 is
    told_X = np.where(np.isfinite(answer_X), FIRST, SECOND)
    # 3: never visited: guess
    coin_RX = rng.integers(FIRST, SECOND + 1, size=visits_RX.shape)
    return np.where(visits_RX > 0, told_X, coin_RX)


def risk_of(choice_RX: Array, secret_X: Array, context_prob_X: Array) -> Array:
    """1 - V of every student [R]: the probability of contexts at which its choice is not the secret."""
    return (choice_RX != secret_X) @ context_prob_X


def simulated_risks(
    context_prob_X: Array,
    coverage: float,
    num_data: int,
    num: int,
    rng: np.random.Generator,
    is_online: bool = False,
) -> Array:
    """1 - V [R] of the offline or the online student, each repetition with data of its own, under one drawn secret."""
    secret_X = rng.integers(FIRST, SECOND + 1, size=len(context_prob_X))
    # Online prompts have the law of the demonstrations' contexts: one draw serves both.
    counts_RXA = draw_counts(context_prob_X, secret_X, coverage, num_data, num, rng)
    if is_online:
        choice_RX = online_students(counts_RXA.sum(-1), expert_law(secret_X, coverage), rng)
    else:
        choice_RX = offline_students(counts_RXA, rng)
    return risk_of(choice_RX, secret_X, context_prob_X)


def floored_log_likelihood(choice_KX: Array, counts_XA: Array, floor: float) -> Array:
    """Log-likelihood [K] of the demonstrations under (1 - floor) student + floor uniform; -inf at floor = 0 with a y1.

    Raises:
        ValueError: floor not in [0, 1).
    """
    if not 0 <= floor < 1:
        raise ValueError(f"floor must be in [0, 1), got {floor}: at 1 all students are the same.")
    law_KXA = (1 - floor) * np.eye(NUM_ACTIONS)[choice_KX] + floor / NUM_ACTIONS
    with np.errstate(divide="ignore"):
        logp_KXA = np.log(law_KXA)
    # 0 log 0 = 0: an action that was not demonstrated does not count
    return np.where(counts_XA > 0, counts_XA * np.where(counts_XA > 0, logp_KXA, 0), 0).sum((-1, -2))


def consistent_share(
    context_prob_X: Array,
    coverage: float,
    num_demos: int,
    floors: Sequence[float],
    num: int,
    rng: np.random.Generator,
) -> float:
    """Share of drawn data sets at which, for every floor, the likelihood's maximisers over the whole class are exactly
    the students that no demonstration other than y1 contradicts."""
    students_KX = all_students(len(context_prob_X))
    num_equal = 0
    for _ in range(num):
        secret_X = students_KX[rng.integers(len(students_KX))]
        counts_XA = draw_counts(context_prob_X, secret_X, coverage, num_demos, 1, rng)[0]
        informed_X = counts_XA[:, FIRST:].sum(-1) > 0
        is_consistent_K = (students_KX[:, informed_X] == secret_X[informed_X]).all(-1)
        score_FK = np.stack([floored_log_likelihood(students_KX, counts_XA, floor) for floor in floors])
        is_best_FK = score_FK > score_FK.max(-1, keepdims=True) - 1e-9
        num_equal += int((is_best_FK == is_consistent_K).all())
    return num_equal / num


def enumerated_risks(context_prob_X: Array, coverage: float, num_demos: int) -> dict[str, float]:
    """Exact risks by enumeration of every data set, secret and student; for tiny worlds, (3 X)^N 2^X cases.

    Returns:
        best: of the best of all offline learners under a uniform secret: at each data set the student of least
            posterior risk. A randomised learner is a mixture of such choices and cannot be better.
        best_worst_secret: the largest risk over the secrets of the learner that guesses uniformly over the
            students that no demonstration contradicts.
        unfloored: of log-loss without a floor, ties broken against the learner.
    """
    require_world(context_prob_X, coverage, num_demos)
    if abs(context_prob_X.sum() - 1) > 1e-9:
        raise ValueError(f"enumeration expects a context law that sums to 1, got {context_prob_X.sum()}.")
    num_contexts = len(context_prob_X)
    students_KX = all_students(num_contexts)
    # risk_KS[k, s]: student k where the secret is that of student s
    risk_KS = (students_KX[:, None] != students_KX[None]) @ context_prob_X
    cells_SXA = context_prob_X[:, None] * np.stack([expert_law(s, coverage) for s in students_KX])
    best, unfloored = 0.0, 0.0
    guess_S = np.zeros(len(students_KX))
    for demos in product(product(range(num_contexts), range(NUM_ACTIONS)), repeat=num_demos):
        prob_S = np.prod([cells_SXA[:, x, a] for x, a in demos], axis=0)
        best += (risk_KS @ prob_S).min() / len(students_KX)
        counts_XA = np.zeros((num_contexts, NUM_ACTIONS))
        for x, a in demos:
            counts_XA[x, a] += 1
        score_K = floored_log_likelihood(students_KX, counts_XA, 0.0)
        unfloored += (risk_KS[score_K == score_K.max()].max(0) * prob_S).mean()
        floored_K = floored_log_likelihood(students_KX, counts_XA, 0.5)
        guess_S += risk_KS[np.isclose(floored_K, floored_K.max(), rtol=0, atol=1e-9)].mean(0) * prob_S
    return {"best": float(best), "best_worst_secret": float(guess_S.max()), "unfloored": float(unfloored)}

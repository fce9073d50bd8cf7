"""Mean-field maps of imitation under absorbing noise: how clean prefixes survive a student that samples them itself.

T positions, K actions. The noisy expert is right with probability a while the prefix is clean (no token before differs
from the clean expert's) and guesses uniformly over the K actions after the first error. The student is taken to be at
the optimum of its loss, and not to tell clean prefixes from poisoned ones: one law per position, right with
probability p_t on a clean prefix, the rest spread evenly. With c_t the share of clean prefixes among those trained on,

    c_{t+1} = c_t r(p_t),        r(p) = p where prefixes are sampled at temperature 1, r = 1 where they are greedy.

All of this is DERIVED for the setting of arXiv:2606.30923, Sec. 5 (modular addition), which reports the runs only.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from decimal import Decimal, localcontext
from typing import Literal

import numpy as np
from scipy.optimize import root_scalar

Array = np.ndarray
ErrorKind = Literal["uniform", "other"]

EXPERT_FLOOR = 1e-10
"""The least probability of the expert that a reverse KL sees; what bounds the log-ratio when eta = 0."""


@dataclass(frozen=True, eq=False)
class Path:
    """What a map gives: clean shares c_0 .. c_T (one more than positions) and right-probabilities p_0 .. p_{T-1}."""

    clean_T: Array
    right_T: Array

    @property
    def loss_nats(self) -> float:
        """Cross-entropy of the right token on clean prefixes, averaged over positions: the paper's validation loss."""
        return float(-np.log(self.right_T).mean())


def right_rate(eta: float, num_actions: int, error: ErrorKind) -> float:
    """a, the probability that the noisy expert is right on a clean prefix.

        error "uniform" (the wrong draw may be right):  a = 1 - eta (K - 1) / K
        error "other"   (the wrong draw is wrong):      a = 1 - eta

    Raises:
        ValueError: eta outside [0, 1), fewer than two actions, or another kind of error.
    """
    _require_actions(num_actions)
    if not 0 <= eta < 1:
        raise ValueError(f"eta must be in [0, 1), got {eta}.")
    if error == "uniform":
        return 1 - eta * (num_actions - 1) / num_actions
    if error == "other":
        return 1 - eta
    raise ValueError(f"error must be 'uniform' or 'other', got {error!r}.")


def log_ratio(right: float, num_actions: int, floor: float = EXPERT_FLOOR) -> float:
    """g = log q(right) - log q(one wrong action), each at least log `floor`, in nats."""
    _require_right(right, num_actions)
    wrong = (1 - right) / (num_actions - 1)
    return math.log(max(right, floor)) - math.log(max(wrong, floor))


def forward_optimum(clean: float, right: float, num_actions: int) -> float:
    """p(right) of the law nearest in forward KL to labels on a mixture of clean and poisoned prefixes:

    p = c a + (1 - c) / K
    """
    return clean * right + (1 - clean) / num_actions


def reverse_optimum(clean: float, ratio_nats: float, num_actions: int) -> float:
    """p(right) of the law p that minimises c KL(p || q) + (1 - c) KL(p || uniform), which is p ~ q^c:

    p = e^{g c} / (e^{g c} + K - 1)
    """
    return 1 / (1 + (num_actions - 1) * math.exp(-ratio_nats * clean))


def tempered(right: float, num_actions: int, temperature: float) -> float:
    """P(right) of a roll-out at `temperature` from a law that is right with probability `right`, the rest even.

        r = p^{1/T} / (p^{1/T} + (K - 1) ((1 - p) / (K - 1))^{1/T}),        T = 0: 1, 1/K or 0 (greedy)

    Raises:
        ValueError: a negative temperature.
    """
    if not temperature >= 0:
        raise ValueError(f"temperature must be >= 0, got {temperature}.")
    if right in (0.0, 1.0):
        return right
    gap = math.log((1 - right) / (num_actions - 1)) - math.log(right)
    if temperature == 0:
        return 1.0 if gap < 0 else 0.0 if gap > 0 else 1 / num_actions
    exponent = gap / temperature + math.log(num_actions - 1)
    return 1 / (1 + math.exp(exponent)) if exponent < 700 else 0.0


def walk(
    optimum: Callable[[float], float],
    length: int,
    num_actions: int,
    *,
    initial_error: float = 0.0,
    temperature: float = 1.0,
) -> Path:
    """Iterate c_{t+1} = c_t r(optimum(c_t)) from c_0 = 1 - initial_error.

    Args:
        optimum: c -> p, the student's right-probability at a position where a share c of the prefixes is clean.
        length: number of positions, >= 1.
        initial_error: share of prefixes that are poisoned before the first position: stands for what a trained student
            still gets wrong; without it nothing is amplified at eta = 0.
        temperature: of the student's roll-outs; 0 is greedy.
    Raises:
        ValueError: length < 1 or an initial error outside [0, 1].
    """
    _require_actions(num_actions)
    if length < 1 or not 0 <= initial_error <= 1:
        raise ValueError(
            f"length >= 1 and initial_error in [0, 1] expected, got {length} and {initial_error}."
        )
    clean, right = [1 - initial_error], []
    for _ in range(length):
        right.append(optimum(clean[-1]))
        clean.append(clean[-1] * tempered(right[-1], num_actions, temperature))
    return Path(np.array(clean), np.array(right))


def forward_walk(
    right: float, length: int, num_actions: int, *, initial_error: float = 0.0, temperature: float = 1.0
) -> Path:
    """OPD-F (temperature 1), NAIL-F (temperature 0) and what lies between, at the fixed point of every position."""
    _require_right(right, num_actions)
    return walk(
        lambda clean: forward_optimum(clean, right, num_actions),
        length,
        num_actions,
        initial_error=initial_error,
        temperature=temperature,
    )


def reverse_walk(
    ratio_nats: float, length: int, num_actions: int, *, initial_error: float = 0.0, temperature: float = 1.0
) -> Path:
    """OPD-R (temperature 1), NAIL-R (temperature 0), from the expert's log-ratio g on clean prefixes."""
    return walk(
        lambda clean: reverse_optimum(clean, ratio_nats, num_actions),
        length,
        num_actions,
        initial_error=initial_error,
        temperature=temperature,
    )


def offline_walk(right: float, length: int, num_actions: int) -> Path:
    """Behaviour cloning on the noisy expert's own prefixes: c_t = a^t, whatever the student does."""
    _require_right(right, num_actions)
    clean_T = right ** np.arange(length + 1)
    return Path(clean_T, forward_optimum_array(clean_T[:-1], right, num_actions))


def forward_optimum_array(clean_T: Array, right: float, num_actions: int) -> Array:
    """`forward_optimum` at every position."""
    return clean_T * right + (1 - clean_T) / num_actions


def next_error(error: float, num_actions: int) -> float:
    """d_{t+1} of OPD-F at eta = 0, where d = 1 - c; a logistic map, so small errors grow by (2K - 1)/K a position:

    d_{t+1} = d_t (1 + (K - 1)/K) - d_t^2 (K - 1)/K
    """
    share = (num_actions - 1) / num_actions
    return error * (1 + share) - error**2 * share


def reverse_growth(ratio_nats: float, num_actions: int) -> float:
    """Factor by which OPD-R passes on a small loss of clean prefixes at c = 1:

        d c_{t+1} / d c_t = p (1 + g (1 - p)),        p = e^g / (e^g + K - 1)

    Near 1 for a sure expert: there is no amplification, only the 1 - p lost at each position.
    """
    right = reverse_optimum(1.0, ratio_nats, num_actions)
    return right * (1 + ratio_nats * (1 - right))


def signal(path: Path, right: float, num_actions: int) -> Array:
    """How far the forward optimum puts the right action above each wrong one, position by position, in [0, 1]:

        s_t = p_t - (1 - p_t)/(K - 1) = c_t (K a - 1)/(K - 1)

    Computed from c_t, since p_t - 1/K is lost in rounding long before c_t is. For `forward_walk` and `offline_walk`.
    """
    return path.clean_T[:-1] * (num_actions * right - 1) / (num_actions - 1)


def exact_margins(right: float, length: int, num_actions: int, digits: int = 60) -> list[Decimal]:
    """(K p_t - 1)/(K - 1) of OPD-F's map, iterated from c_0 = 1 with so many digits that the difference is not lost."""
    with localcontext() as context:
        context.prec = digits
        a, k, clean, margins = Decimal(right), Decimal(num_actions), Decimal(1), []
        for _ in range(length):
            p = clean * a + (1 - clean) / k
            margins.append((k * p - 1) / (k - 1))
            clean *= p
        return margins


def margin(right_T: Array, num_actions: int) -> Array:
    """(K p - 1)/(K - 1) of right-probabilities; the same as `signal` for a forward optimum, but rounded."""
    return (num_actions * right_T - 1) / (num_actions - 1)


def solved_depth(loss_nats: float, length: int, num_actions: int, floor_nats: float) -> float:
    """Positions at the floor if all others are at chance, which a mean validation loss L stands for:

    depth = T (ln K - L) / (ln K - floor)
    """
    return length * (math.log(num_actions) - loss_nats) / (math.log(num_actions) - floor_nats)


def first_at_chance(path: Path, num_actions: int, within: float) -> int:
    """First position, counted from 1, whose margin over chance is below `within`; length + 1 if there is none."""
    below_T = margin(path.right_T, num_actions) < within
    return int(np.argmax(below_T)) + 1 if below_T.any() else len(below_T) + 1


def critical_temperature(
    optimum: Callable[[float], float], length: int, num_actions: int, share: float = 0.5
) -> float:
    """The rollout temperature at which a share `share` of the prefixes is still clean after `length` positions.

    The share falls with the temperature (a hotter roll-out errs more, and the labels it then gets make the student err
    more), so there is one root; it is found by bracketing.

    Raises:
        ValueError: the share is kept even at temperature 1, or the optimum on clean prefixes is at chance.
    """

    def excess(temperature: float) -> float:
        return walk(optimum, length, num_actions, temperature=temperature).clean_T[-1] - share

    if excess(1.0) >= 0 or excess(0.0) <= 0:
        raise ValueError(
            f"no temperature in (0, 1) leaves {share} of the prefixes clean after {length} positions: "
            f"{excess(0.0) + share:.3g} greedy, {excess(1.0) + share:.3g} at temperature 1."
        )
    return _root(excess, 0.0, 1.0)


def critical_log_ratio(length: int, num_actions: int, share: float = 0.5) -> float:
    """The expert's log-ratio g above which OPD-R keeps a share `share` of its prefixes clean over `length` positions."""

    def excess(ratio_nats: float) -> float:
        return reverse_walk(ratio_nats, length, num_actions).clean_T[-1] - share

    return _root(excess, 0.0, 50.0)


def _root(function: Callable[[float], float], low: float, high: float) -> float:
    return float(root_scalar(function, bracket=(low, high), method="brentq", xtol=1e-14).root)


def delayed(path: Path, delay: int) -> Array:
    """p_t of a student that tells poisoned prefixes apart at the first `delay` positions, and nowhere later.

    There it has the law of clean prefixes, p_0; from then on the map takes its course.
    """
    num = len(path.right_T)
    return path.right_T[np.maximum(np.arange(num) - delay, 0)]


def marginal_right(right_T: Array, num_actions: int) -> Array:
    """P(token t of a sampled response is right), for a student that adds to its own last token, right or wrong.

    The offset from the true running sum is then a walk on the K residues, moved evenly by every error:

        R_t = R_{t-1} p_t + (1 - R_{t-1}) (1 - p_t)/(K - 1),    R_{-1} = 1;    equally  R_t = 1/K + (K - 1)/K prod_s margin_s
    """
    return 1 / num_actions + (num_actions - 1) / num_actions * np.cumprod(margin(right_T, num_actions))


def blind_kl_floor(clean: float, right: float, num_actions: int) -> float:
    """The least mean KL(expert || student), in nats, of any student with one law for clean and poisoned prefixes:

        min_p  c KL(q || p) + (1 - c) KL(uniform || p)  =  H(c q + (1 - c) uniform) - c H(q) - (1 - c) ln K

    A student below it on prefixes of which a share c is clean does tell them apart.
    """
    mixed = forward_optimum(clean, right, num_actions)
    return (
        _entropy(mixed, num_actions)
        - clean * _entropy(right, num_actions)
        - (1 - clean) * math.log(num_actions)
    )


def _entropy(right: float, num_actions: int) -> float:
    """Of a law that is right with probability `right` and even over the rest, in nats."""
    wrong = (1 - right) / (num_actions - 1)
    parts = [right * math.log(right)] if right > 0 else [0.0]
    return -sum(parts) - (num_actions - 1) * (wrong * math.log(wrong) if wrong > 0 else 0.0)


def _require_actions(num_actions: int) -> None:
    if num_actions < 2:
        raise ValueError(f"two or more actions expected, got {num_actions}.")


def _require_right(right: float, num_actions: int) -> None:
    _require_actions(num_actions)
    if not 0 < right <= 1:
        raise ValueError(f"the expert's right-probability must be in (0, 1], got {right}.")

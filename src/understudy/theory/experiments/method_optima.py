"""Where does each method end, if training is perfect?

Each objective is solved exactly under absorbing noise, for a student that sees its history and for one that does not.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace

import numpy as np

from understudy.theory.method_optima import (
    CHOICES,
    Array,
    Choice,
    Optimum,
    Quality,
    World,
    distance,
    quality,
    solve,
    tied_forward_map,
    tied_offline,
    tied_reverse_map,
    untrained_share,
)
from understudy.theory.outcome import Heat, Line, Outcome, Panel, Progress, Row, silent

_SEED = 71
_ROUNDING = 1e-12
_SOURCE = "DERIVED"
_NAIL = "arXiv:2606.30923"

KNOWN = ("sft-known", "opd-known", "nail-known")
PLAIN = tuple(name for name in CHOICES if name not in KNOWN)
SAME = {
    "sft, kd": "kd",
    "gkd": "gkd",
    "dagger": "dagger",
    "opd-f": "opd-f",
    "opd-r, opd-pg": "opd-r",
    "nail-f, -r, -mix": "nail-f",
    "sft-known": "sft-known",
    "opd-known, nail-known": "nail-known",
}
"""Methods whose tied optima coincide share a line; the rows check that they do."""


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Sizes of the world; every prefix is enumerated, V ** (H - 1) of them at the last position."""

    num_tokens: int = 3
    horizon: int = 8
    num_prompts: int = 2
    eta: float = 0.2
    """Probability that the expert's token is replaced by a uniform one."""
    dagger_rounds: int = 16
    slip: float = 1e-7
    """Small enough that its square does not count: how a slip in a rollout grows."""


@dataclass(frozen=True, kw_only=True, eq=False)
class _Solved:
    """Every method's optimum in one world, for both classes."""

    world: World
    full: Mapping[str, Optimum]
    tied: Mapping[str, Optimum]
    full_quality: Mapping[str, Quality]
    tied_quality: Mapping[str, Quality]

    def tied_right_H(self, name: str) -> Array:
        tied_HV = self.tied[name].tied_HV
        assert tied_HV is not None
        return tied_HV[:, 0]


def run(seed: int = 0, progress: Progress = silent, settings: Settings = Settings()) -> Outcome:
    """Solve every method in both classes and compare with the closed forms.

    The seed decides the digits of the prompts, on which nothing but the path depends.

    Raises:
        ValueError: settings that leave no world: fewer than two tokens or three positions, an eta outside (0, 1).
    """
    if settings.num_tokens < 2 or settings.horizon < 3 or not 0 < settings.eta < 1:
        raise ValueError(f"two tokens, three positions and 0 < eta < 1 expected, got {settings}.")
    generator = np.random.default_rng([seed, _SEED])
    digits_PH = generator.integers(0, settings.num_tokens, (settings.num_prompts, settings.horizon))
    world = World(digits_PH=digits_PH, num_tokens=settings.num_tokens, eta=settings.eta)
    solved = _solve_all(world, settings, progress)
    rows = (*_full_rows(solved), *_tied_rows(solved, settings), *_further_rows(world, solved, settings))
    progress(1.0)
    return Outcome(
        rows=rows,
        panels=(
            _right_panel(solved, settings),
            _margin_panel(solved),
            _success_panel(solved),
            _slip_panel(world, settings),
        ),
        reading=_reading(solved, settings),
        settings=asdict(settings),
    )


def _choice(name: str, settings: Settings) -> Choice:
    return replace(CHOICES[name], rounds=settings.dagger_rounds)


def _solve_all(world: World, settings: Settings, progress: Progress) -> _Solved:
    full, tied = {}, {}
    for i, name in enumerate(CHOICES):
        full[name] = solve(world, _choice(name, settings), is_tied=False)
        tied[name] = solve(world, _choice(name, settings), is_tied=True)
        progress(0.8 * (i + 1) / len(CHOICES))
    return _Solved(
        world=world,
        full=full,
        tied=tied,
        full_quality={name: quality(world, optimum.policy) for name, optimum in full.items()},
        tied_quality={name: quality(world, optimum.policy) for name, optimum in tied.items()},
    )


def _equal(claim: str, measured: float, bound: float = 0.0, **more: object) -> Row:
    keys = {"source": _SOURCE, "tolerance": _ROUNDING, **more}
    return Row(claim=claim, relation="=", measured=float(measured), bound=float(bound), **keys)  # pyright: ignore


def _full_rows(solved: _Solved) -> list[Row]:
    world, full = solved.world, solved.full
    residual = max(o.kkt_residual for o in (*full.values(), *solved.tied.values()))
    off_path = distance(world, full["nail-f"], "noisy", where="trained")
    return [
        Row(
            claim="Each solved row is optimal: KKT residual, all methods, both classes",
            source=_SOURCE,
            relation="<=",
            bound=1e-10,
            measured=residual,
            num=2 * len(CHOICES),
        ),
        _equal(
            f"Full history: {len(PLAIN)} plain methods end at the noisy law: largest TV",
            max(distance(world, full[name], "noisy", where="trained") for name in PLAIN),
            num=len(PLAIN),
            note="on prefixes that are trained at",
        ),
        _equal(
            "Full history: sft-, opd-, nail-known end at the clean expert: largest TV",
            max(distance(world, full[name], "clean", where="right") for name in KNOWN),
            num=len(KNOWN),
            note="on right prefixes",
        ),
        _equal(
            "Full history: T=1 success of a plain method is a^H, a = P(noisy token is right)",
            solved.full_quality["opd-f"].success,
            world.noisy_V[0] ** world.horizon,
        ),
        _equal(
            "Full history: share of nail-f's own T=1 prefixes it never saw, last position",
            untrained_share(world, full["nail-f"]),
            1 - world.noisy_V[0] ** (world.horizon - 1),
            note=f"there its rows are undetermined; on the greedy path its distance to the noisy law is {off_path:.0e}",
        ),
    ]


def _tied_rows(solved: _Solved, settings: Settings) -> list[Row]:
    world, tied = solved.world, solved.tied
    num_tokens, horizon, right = world.num_tokens, world.horizon, float(world.noisy_V[0])
    forward_H = tied_forward_map(right, num_tokens, horizon)
    reverse_H = tied_reverse_map(right, num_tokens, horizon)
    offline_H = tied_offline(right, num_tokens, horizon, right)
    known_H = tied_offline(1.0, num_tokens, horizon, right)

    def gap(expected_H: Array, *names: str) -> float:
        return max(float(np.abs(solved.tied_right_H(name) - expected_H).max()) for name in names)

    nail = max(
        distance(world, tied[name], "noisy", where="trained") for name in ("nail-f", "nail-r", "nail-mix")
    )
    dagger_H, opd_H, kd_H = (solved.tied_right_H(name) for name in ("dagger", "opd-f", "kd"))
    gaps = (kd_H - opd_H, dagger_H - opd_H, kd_H - dagger_H)
    mean_share = np.mean([_choice("dagger", settings).decay ** r for r in range(settings.dagger_rounds)])
    ahead = (right - 1 / num_tokens) * right * (right - opd_H[1]) * mean_share
    return [
        _equal("Tied opd-f follows p = c a + (1-c)/V, c' = c p: largest gap", gap(forward_H, "opd-f")),
        _equal(
            "Tied opd-r, opd-pg follow p = e^{gc} / (e^{gc} + V-1): largest gap",
            gap(reverse_H, "opd-r", "opd-pg"),
        ),
        _equal(
            "Tied sft, kd follow p = c a + (1-c)/V, c = a^(t-1): largest gap", gap(offline_H, "sft", "kd")
        ),
        _equal("Tied sft-known follows p = c + (1-c)/V: not the clean expert", gap(known_H, "sft-known")),
        _equal("Tied nail-f, nail-r, nail-mix end at the noisy law: largest TV", nail, source=f"{_NAIL} B.3"),
        _equal(
            "Tied nail-known ends at the clean expert: largest TV",
            distance(world, tied["nail-known"], "clean", where="right"),
            source=f"{_NAIL} Cor 1",
        ),
        _equal(
            "Tied opd-known also ends at the clean expert: largest TV",
            distance(world, tied["opd-known"], "clean", where="right"),
            note="a fixed point, but an unstable one: see the growth of a slip",
        ),
        Row(claim="Tied opd-f is never above kd, dagger never outside them: least gap", source=_SOURCE, relation=">=",
            bound=0.0, measured=float(min(gap_H.min() for gap_H in gaps)), tolerance=_ROUNDING, num=horizon,
            note="all three are equal at positions 1 and 2"),
        Row(claim="From position 3 on opd-f is below dagger, dagger below kd: least gap > 1e-6", source=_SOURCE,
            relation=">=", bound=1e-6, measured=float(min(gap_H[2:].min() for gap_H in gaps)), num=horizon - 2,
            note=f"least p(kd) - p(opd-f) there {(kd_H - opd_H)[2:].min():.3g}"),
        _equal(
            f"Tied dagger, {settings.dagger_rounds} rounds: its lead over opd-f at position 3",
            dagger_H[2] - opd_H[2],
            float(ahead),
            note="(a - 1/V) a (a - p_2) mean of decay^r: it dies like 1 / rounds",
        ),
    ]  # fmt: skip


def _further_rows(world: World, solved: _Solved, settings: Settings) -> list[Row]:
    num_tokens, lasting = world.num_tokens, replace(world, is_absorbing=False)
    accuracies = [q.greedy_accuracy for q in (*solved.full_quality.values(), *solved.tied_quality.values())]
    spared = max(
        distance(lasting, solve(lasting, _choice(name, settings), is_tied=True), "noisy", where="trained")
        for name in PLAIN
    )
    growth = (2 - 1 / num_tokens) ** (world.horizon - 1) - 1
    linear = (1 - 1 / num_tokens) * (world.horizon - 1)
    over, under = (1 + world.rate) / 2, world.rate / 2
    too_high = solve(world, replace(CHOICES["nail-known"], known_rate=over), is_tied=True)
    too_low = solve(world, replace(CHOICES["nail-known"], known_rate=under), is_tied=True)
    assert too_low.tied_HV is not None
    other = 1 - 1 / (2 * num_tokens)
    moved = replace(world, eta=other, error="other")
    reverse_at_zero = solve(replace(world, eta=0.0), CHOICES["opd-r"], is_tied=True).tied_HV
    assert reverse_at_zero is not None
    return [
        _equal(
            "Greedy decoding of every optimum is right: least accuracy",
            min(accuracies),
            1.0,
            num=len(accuracies),
            note="what differs is the margin, which a real student must resolve",
        ),
        _equal("Without absorption plain tied methods lose nothing: largest TV to noisy law", spared),
        _equal(
            "Tied opd-known: a slip s in rollouts grows to ((2-1/V)^(H-1) - 1) s",
            _slip_H(world, settings, "opd-known")[-1] / settings.slip,
            growth,
            tolerance=10 * settings.slip * growth**2,
            note="tolerance: the second order in s",
        ),
        _equal(
            "Tied nail-known: the same slip grows to (1-1/V) (H-1) s, linearly",
            _slip_H(world, settings, "nail-known")[-1] / settings.slip,
            linear,
            tolerance=10 * settings.slip * linear**2,
            note="tolerance: the second order in s",
        ),
        _equal(
            f"nail-known that believes in rate {over:g}, true {world.rate:g}: TV to clean",
            distance(world, too_high, "clean", where="right"),
            note="too high a rate ends on the boundary of the simplex: the same point mass",
        ),
        _equal(
            f"nail-known that believes in rate {under:g}, true {world.rate:g}: P(wrong)",
            float(1 - too_low.tied_HV[:, 0].min()),
            (world.rate - under) / (1 - under) * (1 - 1 / num_tokens),
        ),
        _equal(
            f"Other-token noise of eta {other:.3g} > 1 - 1/V: nail-f's greedy accuracy",
            quality(moved, solve(moved, CHOICES["nail-f"], is_tied=False).policy).greedy_accuracy,
            source=f"DERIVED for {_NAIL} Thm 9",
            note="noise that moves the argmax breaks greedy prefixes",
        ),
        _equal(
            "Reverse KL to a sure expert keeps 1e-10 on a wrong token: p / 1e-10, eta 0",
            reverse_at_zero[0, 1] / 1e-10,
            1 / (1 + (num_tokens - 1) * 1e-10),
            source=f"{_NAIL} A.3.3, its clamp",
        ),
    ]


def _slip_H(world: World, settings: Settings, name: str) -> Array:
    """Share of prefixes of a tied student's rollouts that are wrong, by position, when every token may slip."""
    slipped = solve(world, replace(CHOICES[name], slip=settings.slip), is_tied=True)
    wrong = [(w_PN * ~world.is_right(t)).sum() / world.num_prompts for t, w_PN in enumerate(slipped.weights)]
    return np.array(wrong)


def _positions(horizon: int) -> list[float]:
    return [float(t + 1) for t in range(horizon)]


def _right_panel(solved: _Solved, settings: Settings) -> Panel:
    world, horizon = solved.world, solved.world.horizon
    right, num_tokens = float(world.noisy_V[0]), world.num_tokens
    predicted = {
        "opd-f": tied_forward_map(right, num_tokens, horizon),
        "opd-r, opd-pg": tied_reverse_map(right, num_tokens, horizon),
        "sft, kd": tied_offline(right, num_tokens, horizon, right),
        "sft-known": tied_offline(1.0, num_tokens, horizon, right),
    }
    x = _positions(horizon)
    measured = [
        Line(label=label, x=x, y=solved.tied_right_H(name).tolist(), group=label)
        for label, name in SAME.items()
    ]
    closed = [
        Line(label=f"{label}: closed form", x=x, y=y_H.tolist(), role="predicted", group=label)
        for label, y_H in predicted.items()
    ]
    return Panel(
        title="Tied student: probability of the right token after a right prefix",
        x_label="position t",
        y_label="p(clean token)",
        lines=(*measured, *closed, Line(label="chance 1/V", x=x, y=[1 / num_tokens] * horizon, role="bound")),
        y_limits=(0.0, 1.05),
    )


def _margin_panel(solved: _Solved) -> Panel:
    x = _positions(solved.world.horizon)
    return Panel(
        title="Tied student: what greedy decoding has to go by",
        x_label="position t",
        y_label="p(clean) - largest other",
        y_scale="log",
        lines=[
            Line(label=label, x=x, y=solved.tied_quality[name].margin_H.tolist(), group=label)
            for label, name in SAME.items()
        ],
    )


def _success_panel(solved: _Solved) -> Panel:
    values = [[solved.full_quality[name].success, solved.tied_quality[name].success] for name in CHOICES]
    return Panel(
        title="Success of the optimum at temperature 1",
        x_label="class of students",
        y_label="method",
        heat=Heat(
            columns=("full history", "tied"),
            rows=tuple(CHOICES),
            values=values,
            label="P(whole response is right)",
        ),
    )


def _slip_panel(world: World, settings: Settings) -> Panel:
    x = _positions(world.horizon)[1:]
    steps_H = np.arange(1, world.horizon)
    predicted = {
        "opd-known": ("((2-1/V)^(t-1) - 1) s", (2 - 1 / world.num_tokens) ** steps_H - 1),
        "nail-known": ("(1-1/V) (t-1) s", (1 - 1 / world.num_tokens) * steps_H),
    }
    lines = []
    for name, (form, growth_H) in predicted.items():
        found = _slip_H(world, settings, name)[1:].tolist()
        lines.append(Line(label=f"tied {name}", x=x, y=found, group=name))
        lines.append(
            Line(label=form, x=x, y=(settings.slip * growth_H).tolist(), role="predicted", group=name)
        )
    return Panel(
        title=f"A slip of {settings.slip:g} a token in the rollouts grows",
        x_label="position t",
        y_label="share of wrong prefixes",
        y_scale="log",
        lines=lines,
    )


def _reading(solved: _Solved, settings: Settings) -> tuple[str, ...]:
    full, tied, last = solved.full_quality, solved.tied_quality, solved.world.horizon
    return (
        f"A student that sees its whole history ends at the noisy law with every plain method: it samples a right response "
        f"with probability {full['opd-f'].success:.3f} and decodes greedily without error; with known noise it ends at the "
        f"clean expert (success {full['nail-known'].success:.3f}).",
        f"A student that cannot tell a poisoned prefix keeps the noisy law only on greedy prefixes "
        f"({tied['nail-f'].success:.3f}); on fixed data it falls to {tied['kd'].success:.4f}, on its own samples to "
        f"{tied['opd-f'].success:.4f} (forward) and {tied['opd-r'].success:.4f} (reverse).",
        f"At position {last} the right token leads by {tied['nail-f'].margin_H[-1]:.3f} with nail-f, by "
        f"{tied['kd'].margin_H[-1]:.3f} with kd and by {tied['opd-f'].margin_H[-1]:.4f} with opd-f: every optimum is right "
        "when decoded greedily, but a real student has to resolve that margin.",
        f"Knowing the noise does not help fixed data there (sft-known {tied['sft-known'].success:.3f}), as it does not say "
        f"which prefixes are poisoned; opd-known and nail-known both end clean, but on sampled prefixes a slip grows "
        f"{2 - 1 / solved.world.num_tokens:.2f}-fold at each position, on greedy ones linearly (to "
        f"{(1 - 1 / solved.world.num_tokens) * (last - 1):.2f} times its size).",
        f"dagger with {settings.dagger_rounds} rounds ends between kd and opd-f ({tied['dagger'].success:.4f}): its expert "
        "prefixes are outnumbered as rounds go on.",
    )

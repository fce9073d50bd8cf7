"""How pessimistic to be: one run a candidate, and the one whose student is worth most on queries that none was trained on."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.markup import escape

from understudy.build import Parts, build, device_of
from understudy.config import check_recipe, given_options
from understudy.errors import ConfigError, TrainingError
from understudy.files import write_json
from understudy.methods import method_named
from understudy.objectives.estimators import single_label_forward_kl
from understudy.objectives.pessimistic import Estimate, importance_estimate
from understudy.records import Trajectory
from understudy.rollouts.hf import evaluating
from understudy.rollouts.offline import as_trajectory, num_trained
from understudy.run import train
from understudy.schema import Recipe
from understudy.trainer.collate import collate, micro_batches
from understudy.trainer.loss import gate_of, label, position_values
from understudy.wiring import base_samples, limits_of, scores_of

GRID = (0.0, 0.01, 0.03, 0.1, 0.3, 1.0)
MIN_EFFECTIVE_SAMPLES = 10
"""Held-out samples that an estimate must rest on before it is compared with others: its standard error is an estimate, too."""
_BATCH = 64


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """What the student of one run is worth on the held-out queries, in units of the score; NaN where nobody can tell."""

    pessimism: float
    mean: float = math.nan
    standard_error: float = math.nan
    """Over prompts: the samples of one prompt are averaged first."""
    effective_samples: float = 0.0
    """How many of the held-out samples the estimate rests on, (sum rho)^2 / sum rho^2."""
    num_samples: int = 0
    error: str | None = None
    """Why its run has no final student."""
    is_chosen: bool = False

    @property
    def lower(self) -> float:
        """What candidates are compared by; -inf where there is no number."""
        lower = self.mean - self.standard_error
        return lower if math.isfinite(lower) else -math.inf


def choose_pessimism(
    recipe: Recipe,
    out: str | Path,
    *,
    grid: Sequence[float] = GRID,
    console: Console | None = None,
    **own: Any,
) -> list[Candidate]:
    """Train with every value of `method.pessimism` on one log of base samples, and choose by the held-out rest of it.

    The choice is the largest held-out mean less its standard error. A student far from the base model has few samples that
    speak for it: below `MIN_EFFECTIVE_SAMPLES` it is passed over, and if that holds for all the best of them is taken and a
    warning printed. A run that has to stop, or an estimate that is no number, loses. Writes `out/pessimism-<value>/` (the
    runs; a second call goes on) and `out/pessimism.json`.

    Args:
        recipe: its method is `pessimistic`, with no warm start of its own.
        own: task or expert given in Python, as for `train`.
    Returns:
        one candidate a value, in the order of the grid; one of them is chosen.
    Raises:
        ConfigError: another method, a warm start, an empty grid, or held-out prompts that are all trained on.
        TrainingError: no candidate has an estimate.
    """
    if recipe.method.name != "pessimistic" or recipe.warm_start is not None or not grid:
        raise ConfigError(
            "choose_pessimism needs method.name = 'pessimistic', no [warm_start] (give student.checkpoint) and a grid; got "
            f"{recipe.method.name!r}, {recipe.warm_start!r} and {list(grid)}."
        )
    folder, console = Path(out), console or Console(stderr=True)
    recipe = replace(recipe, data=replace(recipe.data, folder=str(folder / "data")))
    found = [_candidate(recipe, folder, float(value), console, own) for value in dict.fromkeys(grid)]
    best = _best(found, console)
    found = [replace(c, is_chosen=c is best) for c in found]
    rows = [{k: None if v != v else v for k, v in asdict(c).items()} for c in found]  # JSON has no NaN
    write_json(folder / "pessimism.json", {"candidates": rows})
    return found


def _candidate(
    recipe: Recipe, folder: Path, value: float, console: Console, own: Mapping[str, Any]
) -> Candidate:
    recipe = replace(recipe, method=replace(recipe.method, pessimism=value))
    check_recipe(recipe)
    place = folder / f"pessimism-{value:g}"
    try:
        train(recipe, place, resume=True, console=console, **own)
    except TrainingError as error:
        console.print(f"pessimism {value:g} is out: {escape(str(error))}", highlight=False, soft_wrap=True)
        return Candidate(pessimism=value, error=str(error))
    estimate = heldout_estimate(recipe, place, **own)
    return Candidate(
        pessimism=value,
        mean=estimate.mean,
        standard_error=estimate.standard_error,
        effective_samples=estimate.effective_share * estimate.num_samples,
        num_samples=estimate.num_samples,
    )


def _best(found: Sequence[Candidate], console: Console) -> Candidate:
    known = [c for c in found if math.isfinite(c.lower)]
    if not known:
        raise TrainingError(
            "no value of the grid has a held-out estimate: every run stopped, or its student gives the log no finite weight. "
            "Lower optimizer.learning_rate, or take larger values of the pessimism."
        )
    reliable = [c for c in known if c.effective_samples >= MIN_EFFECTIVE_SAMPLES]
    if not reliable:
        most = max(c.effective_samples for c in known)
        console.print(
            f"cannot tell: at most {most:.1f} held-out samples speak for a student, and {MIN_EFFECTIVE_SAMPLES} are wanted. "
            "The best of these estimates is taken; raise method.queries or method.heldout.",
            highlight=False,
            soft_wrap=True,
        )
    return max(reliable or known, key=lambda c: c.lower)


def heldout_estimate(recipe: Recipe, run: Path, **own: Any) -> Estimate:
    """What the final student of a run is worth by the queries that it was not trained on."""
    device = device_of(recipe)
    start = build(recipe, device=device, **own)
    trained = build(recipe, device=device, checkpoint=str(run / "final"), **own)
    return estimate_of(recipe, start, trained)


def estimate_of(recipe: Recipe, start: Parts, trained: Parts) -> Estimate:
    """The same for parts that are built: `start` wrote the log, `trained` is asked about.

    Raises:
        ConfigError: every held-out prompt is one that is trained on.
    """
    method = method_named(recipe.method.name)
    options = method.resolve_options(given_options(recipe))
    objective = method.objective(recipe.method.estimator).with_options(options)
    assert recipe.data.folder is not None, "where the log of the runs is"
    assert start.expert is not None, "checked when the recipe was loaded"
    device = next(trained.student.parameters()).device
    unseen = _unseen(recipe, start, options)
    scored = scores_of(recipe, start.expert, objective, device).scored([t for _, t in unseen])
    owner = {t.id: number for (number, _), t in zip(unseen, scored, strict=True)}
    parts, owners = [], []
    with evaluating(trained.student):
        for piece in micro_batches(scored, recipe.train.micro_batch_size or _BATCH):
            batch = collate(piece, device)
            labels = label(batch, gate_of(method, batch), objective, None, recipe.seed)
            known = labels.from_logp
            assert known is not None
            wanted = {"nats": single_label_forward_kl}
            nats_N = position_values(trained.student, trained.vocab_size, batch, labels, wanted)["nats"]
            parts.append((known.logp_B(-nats_N), known.base_logp_B, known.score_B))
            owners += [owner[t.id] for t in piece]
    logp_B, base_logp_B, score_B = (torch.cat(column) for column in zip(*parts, strict=True))
    return importance_estimate(logp_B, base_logp_B, score_B, torch.tensor(owners, device=device))


def _unseen(recipe: Recipe, start: Parts, options: Mapping[str, Any]) -> list[tuple[int, Trajectory]]:
    """(which prompt, trajectory) of the held-out queries whose prompt, token by token, is none that is trained on."""
    per, first = recipe.train.samples_per_prompt, num_trained(options["queries"], options["heldout"])
    count, task = options["queries"] - first, start.task
    log = base_samples(recipe, start, limits_of(recipe, start), Path(str(recipe.data.folder)), options)
    trained_on = {p.token_ids for p in task.prompts("train", 0, first)}
    prompts = [p for p in task.prompts("train", first, count) for _ in range(per)]
    owner = {tokens: i for i, tokens in enumerate(dict.fromkeys(p.token_ids for p in prompts))}
    rows = enumerate(zip(prompts, log.responses(first, count), strict=True))
    found = [
        (owner[p.token_ids], as_trajectory(p, i, r, round=0))
        for i, (p, r) in rows
        if p.token_ids not in trained_on
    ]
    if len({t.prompt.token_ids for _, t in found}) < 2:
        raise ConfigError(
            f"of the {count} held-out queries fewer than two have prompts that are not trained on; the task {task.name} repeats "
            "itself. Lower method.queries."
        )
    return found

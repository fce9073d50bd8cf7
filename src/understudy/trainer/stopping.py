"""When a run is good enough, or no longer gets better."""

from __future__ import annotations

from understudy.errors import TrainingError
from understudy.evaluation.score import Evaluation
from understudy.evaluation.statistics import Estimate
from understudy.schema import StopConfig
from understudy.trainer.checkpoint import Progress


def improves(metric: str, value: float, reference: float, min_delta: float) -> bool:
    """Whether a metric is better than a reference by more than `min_delta`; nats fall, rates rise."""
    gain = reference - value if metric.endswith("_nats") else value - reference
    return gain > min_delta


def stop_reason(stop: StopConfig | None, evaluation: Evaluation, progress: Progress) -> str | None:
    """Why the run should end after this evaluation, if it should. Counts evaluations without improvement.

    Raises:
        TrainingError: the metric of the stop condition was not measured.
    """
    if stop is None:
        return None
    found: Estimate | None = evaluation.metrics.get(stop.metric)
    if found is None:
        raise TrainingError(
            f"stop.metric = {stop.metric!r} was not measured. Measured here: {', '.join(evaluation.metrics)}."
        )
    if stop.target is not None:
        reached = found.value <= stop.target if stop.metric.endswith("_nats") else found.value >= stop.target
        if reached:
            return "target"
    if stop.patience is None:
        return None
    if progress.stop_value is None or improves(stop.metric, found.value, progress.stop_value, stop.min_delta):
        progress.stop_value, progress.stale_evaluations = found.value, 0
        return None
    progress.stale_evaluations += 1
    return "patience" if progress.stale_evaluations >= stop.patience else None

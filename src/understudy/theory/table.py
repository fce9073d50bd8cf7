"""The experiments by name: reading this table is reading the lab."""

from __future__ import annotations

import importlib
from dataclasses import dataclass

from understudy.theory.outcome import Outcome, Progress, silent


@dataclass(frozen=True, kw_only=True)
class Experiment:
    """One entry of the lab."""

    name: str
    question: str
    source: str
    compares_a_run: bool = False
    """It sets its predictions beside the curves of a finished comparison: the shipped ones, or those of a folder."""

    def run(self, seed: int = 0, progress: Progress = silent, run_folder: str = "") -> Outcome:
        """Run it at full size; its module is imported now, for naming experiments must not import SciPy.

        Raises:
            ValueError: a `run_folder` that cannot be compared with.
        """
        module = importlib.import_module(f"understudy.theory.experiments.{self.name.replace('-', '_')}")
        if run_folder:
            return module.run(seed, progress, module.Settings(run_folder=run_folder))
        return module.run(seed, progress)


EXPERIMENTS: dict[str, Experiment] = {
    entry.name: entry
    for entry in (
        Experiment(
            name="offline-bottleneck",
            question="What does an expert outside the student's class cost offline, and what online?",
            source="arXiv:2606.30445 Thm 1",
        ),
        Experiment(
            name="gaussian",
            question="Which student does imitation choose when the expert cannot be represented?",
            source="arXiv:2606.30445 Fig. 4",
        ),
        Experiment(
            name="alignment",
            question="When does a high likelihood under the expert mean a high reward?",
            source="arXiv:2606.30445 Thm 2",
        ),
        Experiment(
            name="pessimism",
            question="Can samples of the base model replace samples of the expert?",
            source="arXiv:2606.30445 Thm 5",
        ),
        Experiment(
            name="lock",
            question="What does noise in the demonstrations cost, and what if labels are asked for at the learner's states?",
            source="arXiv:2606.30923 Thm 6-9, Prop 1",
        ),
        Experiment(
            name="noise-geometry",
            question="How far apart are two clean policies whose noisy versions look alike?",
            source="arXiv:2606.30923 Lemmas 2-4, Thm 6, 7",
        ),
        Experiment(
            name="nailgun",
            question="Can a greedy vote find the expert when the noise is unknown, and where does that end?",
            source="arXiv:2606.30923 Thm 9",
        ),
        Experiment(
            name="mean-field",
            question="Why do sampled prefixes collapse under absorbing noise, and greedy ones advance?",
            source="DERIVED for arXiv:2606.30923 Fig. 4",
            compares_a_run=True,
        ),
        Experiment(
            name="error-accumulation",
            question="Accumulation, misspecification or noise: which of them makes online imitation better?",
            source="arXiv:1011.0686; arXiv:2407.15007; arXiv:2606.30445; arXiv:2606.30923",
        ),
        Experiment(
            name="method-optima",
            question="Where does each method of this library end, if training is perfect?",
            source="DERIVED",
        ),
    )
}

"""Can the server write for this student? It is asked for a token or two; its weights stay what they are."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from understudy.build import Parts
from understudy.doctor.finding import Finding, attempt, fine, problem, warning
from understudy.randomness import generator
from understudy.rollouts.hf import evaluating
from understudy.rollouts.sampler import Limits
from understudy.rollouts.server import Answer
from understudy.rollouts.vllm import ServedStudent
from understudy.schema import Recipe
from understudy.wiring import served_student

_CHECK = "server"


def check_server(recipe: Recipe, parts: Parts, limits: Limits) -> list[Finding]:
    """That it answers, serves one model with room for the longest response and all of the student's ids, gives tokens with their
    log-probabilities, and would take new weights."""
    student, findings = served_student(recipe, parts, Path()), list[Finding]()
    start = "Start it as docs/serving.md says, and correct rollouts.server."
    served = attempt(findings, _CHECK, student.server.served, start)
    if served is None:
        return findings
    told = f"{student.server.url} serves {served.name}"
    size = parts.task.size("train")
    prompts = parts.task.prompts("train", 0, 64 if size is None else min(64, size))
    longest = max(len(p.token_ids) for p in prompts) + limits.max_new_tokens
    if served.max_length is not None and longest > served.max_length:
        found = (
            f"{told} with room for {served.max_length} tokens; a prompt and its response may have {longest}"
        )
        return [problem(_CHECK, found, f"Start it with --max-model-len {longest} or more.")]

    def written() -> Answer:
        # The highest id that the student has: a model with fewer would refuse it.
        ids = (student.num_rows - 1, *prompts[0].token_ids)
        seed = int(generator("doctor").integers(2**31))
        short = Limits(max_new_tokens=1)
        return student.server.complete(
            served.name, ids, max_tokens=1, temperature=1.0, limits=short, seed=seed, salt="doctor"
        )

    if attempt(findings, _CHECK, written, start) is None or not _takes_weights(student, findings):
        return findings
    return [*findings, _nearness(student, parts, served.name, told)]


def _takes_weights(student: ServedStudent, findings: list[Finding]) -> bool:
    """By the endpoint beside the one that loads weights: to drop cached prefixes costs nothing but their next reading."""

    def asked() -> bool:
        student.server.forget_prefixes()
        return True

    return bool(attempt(findings, _CHECK, asked, "Start it with VLLM_SERVER_DEV_MODE=1."))


def _nearness(student: ServedStudent, parts: Parts, name: str, told: str) -> Finding:
    """The same model before anything is handed over is the student's own checkpoint; another one may be what a run left there."""
    probed: list[Finding] = []
    with evaluating(parts.student):
        pair = attempt(
            probed, _CHECK, lambda: student.probe_logp(parts.student, name), "Use vLLM 0.15 or newer."
        )
    if pair is None:
        return probed[0]
    theirs_N, ours_N = pair
    gap = float(np.abs(theirs_N - ours_N).mean()) if len(ours_N) else 0.0
    told = f"{told}, whose log-probabilities differ from the student's by {gap:.2g} nats a token"
    if gap > student.tolerance_nats:
        fix = (
            "Start it with the student's own checkpoint; or leave it as it is, if it holds the weights of an earlier run: it "
            "gets the student's before the first response."
        )
        return warning(_CHECK, told, fix)
    return fine(_CHECK, f"{told}, and it would take new weights")

"""A recipe as frozen dataclasses: what can be set, its default, its consequence; loaded, checked, resolved.

Combinations that cannot run are refused here, before any model is loaded.
"""

from __future__ import annotations

import copy
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from understudy.errors import ConfigError
from understudy.methods import Method, method_named
from understudy.settings import flatten, from_table, set_dotted, to_table


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise ConfigError(message)


def _require_rate(eta: float) -> None:
    _require(0 <= eta < 1, f"eta must be in [0, 1), got {eta}.")


MetricName = Literal[
    "accuracy_greedy",
    "accuracy_sampled",
    "teacher_forced_accuracy",
    "validation_loss_nats",
    "expert_kl_nats",
    "reverse_expert_kl_nats",
]


@dataclass(frozen=True, kw_only=True)
class ModularAdditionTask:
    """Chains of running sums modulo a number, one token each (arXiv:2606.30923, B.4)."""

    kind: Literal["modular_addition"]
    modulus: int
    length: int
    seed: int = 1337


@dataclass(frozen=True, kw_only=True)
class JsonlTask:
    """Rows of a JSON Lines file (or a hub data set): `prompt` or `messages`, optional `reference`."""

    kind: Literal["jsonl"]
    train: str | None = None
    validation: str | None = None
    test: str | None = None
    dataset: str | None = None
    dataset_config: str | None = None
    validation_rows: int = 0
    prompt_field: str = "prompt"
    messages_field: str = "messages"
    reference_field: str = "reference"
    id_field: str = "id"
    grader: Literal["exact", "numeric", "gsm8k"] | None = None
    """None: no accuracy is measured."""
    max_prompt_tokens: int = 1024
    max_new_tokens: int = 256
    too_long: Literal["error", "drop"] = "error"
    """What happens to rows over the limits: stop and name the first, or leave them out of training and evaluation."""
    stop_strings: tuple[str, ...] = ()
    end_token: str | None = None
    """Closes a reference, for chat models that end a turn with another token than the tokenizer's EOS."""


@dataclass(frozen=True, kw_only=True)
class Gsm8kTask:
    """Grade-school word problems; the answer is read from `#### n` or `\\boxed{n}`. `path`: a folder, or absent for the hub."""

    kind: Literal["gsm8k"]
    path: str | None = None
    validation_rows: int = 256
    keep_calculator_marks: bool = False
    max_prompt_tokens: int = 1024
    max_new_tokens: int = 256
    too_long: Literal["error", "drop"] = "error"
    stop_strings: tuple[str, ...] = ()
    end_token: str | None = None


TaskConfig = ModularAdditionTask | JsonlTask | Gsm8kTask


@dataclass(frozen=True, kw_only=True)
class NewModel:
    """A randomly initialised model of a transformers family; the sizes are the usual ones of its config."""

    family: Literal["llama", "gpt2"]
    layers: int
    width: int
    heads: int
    intermediate: int | None = None
    max_positions: int = 1024
    tied_embeddings: bool = False
    initializer_range: float = 0.02
    """Standard deviation of the initial weights; 0.02 suits wide models, narrow ones learn sooner from more."""
    vocab_size: int | None = None
    """None: the task's vocabulary, or the tokenizer's."""

    def __post_init__(self) -> None:
        for name in ("layers", "width", "heads", "max_positions"):
            _require(getattr(self, name) > 0, f"{name} must be > 0, got {getattr(self, name)}.")
        _require(
            self.width % self.heads == 0,
            f"width must be a multiple of heads, got {self.width} and {self.heads}.",
        )


@dataclass(frozen=True, kw_only=True)
class LoraConfig:
    """Low-rank adapters through peft: only they are trained; the checkpoint holds the merged model."""

    rank: int = 16
    alpha: float = 32.0
    dropout: float = 0.0
    target_modules: tuple[str, ...] = (
        "q_proj",
        "k_proj",
        "v_proj",
        "o_proj",
        "gate_proj",
        "up_proj",
        "down_proj",
    )


@dataclass(frozen=True, kw_only=True)
class StudentConfig:
    """The model that is trained: a checkpoint (folder or hub id) or a new one; exactly one of the two."""

    checkpoint: str | None = None
    new: NewModel | None = None
    tokenizer: str | None = None
    """Folder or hub id; None: the one beside the checkpoint, or none for tasks of bare token ids."""
    lora: LoraConfig | None = None

    def __post_init__(self) -> None:
        both = (self.checkpoint is None) == (self.new is None)
        _require(
            not both,
            "give either student.checkpoint (a folder or hub id) or a [student.new] table, not both or none.",
        )


@dataclass(frozen=True, kw_only=True)
class AdditiveNoise:
    """q_eta = (1 - eta) q + eta Unif(actions), at every position (arXiv:2606.30923, B.1)."""

    law: Literal["additive"]
    eta: float

    def __post_init__(self) -> None:
        _require_rate(self.eta)


@dataclass(frozen=True, kw_only=True)
class TemperatureNoise:
    """softmax(logits / temperature) over the whole vocabulary, no truncation (arXiv:2606.30923, B.5)."""

    law: Literal["temperature"]
    temperature: float

    def __post_init__(self) -> None:
        _require(self.temperature > 0, f"temperature must be > 0, got {self.temperature}.")


@dataclass(frozen=True, kw_only=True)
class CorruptedArgmaxNoise:
    """(1 - eta) q + eta Unif(actions other than argmax q): with probability eta a uniformly random other token."""

    law: Literal["corrupted-argmax"]
    eta: float

    def __post_init__(self) -> None:
        _require_rate(self.eta)


@dataclass(frozen=True, kw_only=True)
class AbsorbingNoise:
    """Noise of rate eta until the first error in the prefix that is given; after it every label is uniform.

    `error` says what noise of rate eta is: `uniform` (the right token included, as published: the wrong-token rate
    is eta (1 - 1/actions)) or `other` (never the right token: the wrong-token rate is eta itself).
    """

    law: Literal["absorbing"]
    eta: float
    error: Literal["uniform", "other"] = "uniform"

    def __post_init__(self) -> None:
        _require_rate(self.eta)


NoiseConfig = AdditiveNoise | TemperatureNoise | CorruptedArgmaxNoise | AbsorbingNoise


@dataclass(frozen=True, kw_only=True)
class ExpertConfig:
    """Who is imitated: `local` (any causal LM) or `oracle` (the task's exact law); a noise law wraps either."""

    kind: Literal["local", "oracle"]
    checkpoint: str | None = None
    recipe: str | None = None
    """Trains the expert first, on this recipe's task, if `checkpoint` is not there yet; the checkpoint is then
    `<run folder>/final` of that run."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    noise: NoiseConfig | None = None

    def __post_init__(self) -> None:
        if self.kind == "local":
            _require(
                self.checkpoint is not None, "a local expert needs expert.checkpoint (a folder or hub id)."
            )
        else:
            _require(
                self.checkpoint is None and self.recipe is None,
                "an oracle expert is the task's exact law and takes no expert.checkpoint or expert.recipe.",
            )
        if self.recipe is not None:
            _require(
                self.checkpoint is not None and Path(self.checkpoint).name == "final",
                f"with expert.recipe, expert.checkpoint must end in /final, which that run writes; got {self.checkpoint}.",
            )


@dataclass(frozen=True, kw_only=True)
class MethodConfig:
    """A row of the table of methods and what may be varied in it; what is left out is the row's published setting."""

    name: str
    estimator: Literal["exact", "sampled"] | None = None
    """exact: the expert's whole law at every position. sampled: one token a position, as published."""
    beta: float | None = None
    student_share: float | None = None
    """gkd only: share of sequences that the student writes (lambda in the paper)."""
    decay: float | None = None
    """dagger only: the expert writes each token with probability decay ** round."""
    rollout_temperature: float | None = None
    """Temperature of the student's rollouts; 0 is greedy."""


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Where offline prefixes come from: the expert rolled out (written once, hashed, reused) or the task's references."""

    offline: Literal["expert", "reference"] = "expert"
    folder: str | None = None
    """Where expert samples are kept; None: `data/` in the run folder."""


@dataclass(frozen=True, kw_only=True)
class WarmStartConfig:
    """What happens before the method: another run's checkpoint, or a first method until the student is good enough."""

    checkpoint: str | None = None
    method: str | None = None
    max_steps: int = 0
    until_teacher_forced_accuracy: float | None = None
    check_every_steps: int = 20
    offline: Literal["expert", "reference"] | None = None
    """Where the first method's fixed data comes from; None: as data.offline says."""

    def __post_init__(self) -> None:
        one = (self.checkpoint is None) != (self.method is None)
        _require(one, "give either warm_start.checkpoint or warm_start.method, not both or none.")
        if self.method is not None:
            _require(self.max_steps > 0, f"max_steps must be > 0, got {self.max_steps}.")
            _require(
                self.check_every_steps > 0, f"check_every_steps must be > 0, got {self.check_every_steps}."
            )


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """The loop: one round = collect batch_size * steps_per_round trajectories, label, take steps_per_round steps."""

    steps: int
    batch_size: int
    """Trajectories of one optimiser step, over all processes and micro-batches."""
    samples_per_prompt: int = 1
    steps_per_round: int = 1
    """1 is strictly on-policy: no gradient is ever taken on a stale rollout."""
    micro_batch_size: int | None = None
    """Trajectories of one forward pass; None: the whole batch. Splitting does not change the gradient."""
    max_new_tokens: int | None = None
    """None: the task's."""
    mixed_precision: Literal["no", "bf16", "fp16"] = "no"
    rollout_batch_size: int | None = None
    """Trajectories that are written side by side; None: all of a round. Lower it when generation runs out of memory."""
    threads: int = 1
    """CPU threads a process; one is fastest for small models and the only sane choice side by side."""
    device: Literal["auto", "cpu"] = "auto"

    def __post_init__(self) -> None:
        for name in ("steps", "batch_size", "samples_per_prompt", "steps_per_round", "threads"):
            _require(getattr(self, name) > 0, f"{name} must be > 0, got {getattr(self, name)}.")
        _require(
            self.batch_size % self.samples_per_prompt == 0,
            f"batch_size must be a multiple of samples_per_prompt, got {self.batch_size} and {self.samples_per_prompt}.",
        )
        for name in ("micro_batch_size", "rollout_batch_size", "max_new_tokens"):
            value = getattr(self, name)
            _require(value is None or value > 0, f"{name} must be > 0, got {value}.")


@dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    """AdamW and the schedule of its learning rate, in optimiser steps."""

    learning_rate: float
    betas: tuple[float, ...] = (0.9, 0.95)
    weight_decay: float = 0.0
    warmup_steps: int = 0
    schedule: Literal["constant", "linear", "cosine"] = "constant"
    final_rate: float = 0.0
    """Learning rate at the last step as a share of the peak; only for linear and cosine."""
    clip_norm: float = 1.0

    def __post_init__(self) -> None:
        _require(self.learning_rate > 0, f"learning_rate must be > 0, got {self.learning_rate}.")
        _require(
            len(self.betas) == 2 and all(0 <= b < 1 for b in self.betas),
            f"betas must be two numbers in [0, 1), got {self.betas}.",
        )
        _require(self.warmup_steps >= 0, f"warmup_steps must be >= 0, got {self.warmup_steps}.")
        _require(self.weight_decay >= 0, f"weight_decay must be >= 0, got {self.weight_decay}.")
        _require(0 <= self.final_rate <= 1, f"final_rate must be in [0, 1], got {self.final_rate}.")
        _require(self.clip_norm > 0, f"clip_norm must be > 0, got {self.clip_norm}.")


@dataclass(frozen=True, kw_only=True)
class EvaluateConfig:
    """What is measured on held-out prompts, and how often; always once at the start and once at the end."""

    every_steps: int = 50
    prompts: int = 256
    batch_size: int = 256
    sampled: bool = True
    """Also sample at temperature 1: accuracy of the law itself, and the prefixes of the exact KL to the expert."""
    samples_per_prompt: int = 1
    expert_kl: bool = True
    best_metric: MetricName | None = None
    """The checkpoint with the best value of it is kept as `best`; None: none is kept."""

    def __post_init__(self) -> None:
        for name in ("every_steps", "prompts", "batch_size", "samples_per_prompt"):
            _require(getattr(self, name) > 0, f"{name} must be > 0, got {getattr(self, name)}.")


@dataclass(frozen=True, kw_only=True)
class StopConfig:
    """Stop before `train.steps`: when a metric reaches a target, or has not improved for `patience` evaluations."""

    metric: MetricName
    target: float | None = None
    patience: int | None = None
    min_delta: float = 0.0

    def __post_init__(self) -> None:
        _require(
            self.target is not None or self.patience is not None, "stop needs a target, a patience, or both."
        )


@dataclass(frozen=True, kw_only=True)
class CheckpointConfig:
    """Training state for --resume, every so many steps; the last `keep` are kept. 0: only the final model."""

    every_steps: int = 0
    keep: int = 1

    def __post_init__(self) -> None:
        _require(self.every_steps >= 0, f"every_steps must be >= 0, got {self.every_steps}.")
        _require(self.keep >= 1, f"keep must be >= 1, got {self.keep}.")


@dataclass(frozen=True, kw_only=True)
class CompareConfig:
    """Methods x seeds under one budget. `overrides.<label>`: settings of one cell, as dotted names."""

    methods: tuple[str, ...]
    seeds: tuple[int, ...] = (0,)
    workers: int = 2
    overrides: dict[str, dict[str, Any]] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Everything that decides a run. Two runs of one recipe and seed on one machine give the same weights."""

    name: str
    task: TaskConfig
    student: StudentConfig
    method: MethodConfig
    train: TrainConfig
    optimizer: OptimizerConfig
    expert: ExpertConfig | None = None
    data: DataConfig = field(default_factory=DataConfig)
    warm_start: WarmStartConfig | None = None
    evaluate: EvaluateConfig = field(default_factory=EvaluateConfig)
    stop: StopConfig | None = None
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    compare: CompareConfig | None = None
    trackers: tuple[str, ...] = ()
    seed: int = 0
    description: str = ""

    def to_table(self) -> dict[str, Any]:
        return to_table(self)


def load_recipe(path: str | Path, overrides: Mapping[str, Any] | Sequence[str] = ()) -> Recipe:
    """Read a recipe (a folder with recipe.toml, or a TOML file), apply overrides, check it.

    Args:
        path: folder or file. Relative paths inside a recipe are relative to the current directory.
        overrides: {"train.steps": 10} or ["train.steps=10"]; values of strings are read as TOML.
    Raises:
        ConfigError: no such file, not TOML, an unknown key, a wrong type, or a combination that cannot run.
    """
    file = Path(path)
    file = file / "recipe.toml" if file.is_dir() else file
    table = _read_toml(file, seen=())
    if not isinstance(overrides, Mapping):
        overrides = dict(parse_override(text) for text in overrides)
    try:
        return recipe_from_table(table, overrides)
    except ConfigError as error:
        raise ConfigError(f"{error} ({file})") from None


def _read_toml(file: Path, seen: tuple[Path, ...]) -> dict[str, Any]:
    """The table of a file; `extends = "other.toml"` (beside it) takes another recipe's settings where it has none.

    A [compare] table replaces the other's whole.
    """
    try:
        table = tomllib.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(
            f"no recipe at {file}. Give a folder that holds recipe.toml, or a .toml file."
        ) from None
    except OSError as error:
        raise ConfigError(f"cannot read the recipe {file}: {error.strerror}.") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{file} is not valid TOML: {error}.") from None
    base = table.pop("extends", None)
    if base is None:
        return table
    if file in seen or not isinstance(base, str):
        raise ConfigError(f"extends must name another recipe file, got {base!r} ({file}).")
    return _merged(_read_toml(file.parent / base, (*seen, file)), table)


def _merged(base: dict[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for key, value in over.items():
        # A comparison is taken whole: the base's cells are not wanted beside the new ones.
        both = isinstance(value, Mapping) and isinstance(base.get(key), Mapping) and key != "compare"
        merged[key] = _merged(base[key], value) if both else value
    return merged


def parse_override(text: str) -> tuple[str, Any]:
    """`train.steps=10` -> ("train.steps", 10). What is not TOML is taken as a string."""
    key, equals, value = text.partition("=")
    if not equals or not key.strip():
        raise ConfigError(f"--set takes key=value, such as train.steps=100; got {text!r}.")
    try:
        return key.strip(), tomllib.loads(f"v = {value}")["v"]
    except tomllib.TOMLDecodeError:
        return key.strip(), value.strip()


def recipe_from_table(table: Mapping[str, Any], overrides: Mapping[str, Any] | None = None) -> Recipe:
    """A checked recipe from nested plain dicts; dotted overrides win. None as a value removes a setting."""
    table = copy.deepcopy(dict(table))
    for key, value in (overrides or {}).items():
        set_dotted(table, key, value)
    recipe = from_table(Recipe, _without_none(table))
    check_recipe(recipe)
    return recipe


def _without_none(table: Mapping[str, Any]) -> dict[str, Any]:
    return {k: _without_none(v) if isinstance(v, Mapping) else v for k, v in table.items() if v is not None}


def check_recipe(recipe: Recipe) -> None:
    """Refuse what cannot run, before a model is loaded; each message says which two settings disagree."""
    method = method_named(recipe.method.name)
    _check_method(recipe, method)
    _check_expert(recipe, method)
    _check_metrics(recipe)
    if recipe.warm_start is not None and recipe.warm_start.method is not None:
        first = warm_start_recipe(recipe)
        assert first is not None
        check_recipe(first)
    if recipe.checkpoint.every_steps % recipe.train.steps_per_round:
        raise ConfigError(
            f"checkpoint.every_steps must be a multiple of train.steps_per_round, got {recipe.checkpoint.every_steps} and "
            f"{recipe.train.steps_per_round}: a checkpoint inside a round would lose the rest of its trajectories."
        )
    if recipe.compare is not None:
        _check_compare(recipe.compare)
        for label in recipe.compare.methods:
            try:
                cell_recipe(recipe, label, recipe.compare.seeds[0])
            except ConfigError as error:
                raise ConfigError(f"compare.methods, {label}: {error}") from None


def _check_method(recipe: Recipe, method: Method) -> None:
    given = {k: v for k, v in to_table(recipe.method).items() if k not in ("name", "estimator")}
    for option in given:
        if option not in method.options:
            allowed = ", ".join(sorted(method.options)) or "none"
            raise ConfigError(f"method.{option} is not an option of {method.name} (its options: {allowed}).")
    estimator = recipe.method.estimator
    if estimator is not None and estimator not in method.estimators:
        have = " and ".join(method.estimators)
        raise ConfigError(
            f"method.estimator = {estimator!r} is not offered by {method.name} (it has: {have}). {method.hint}"
        )
    method.check_options(given)
    _check_channel(recipe, method)


def _check_channel(recipe: Recipe, method: Method) -> None:
    if not method.uses_channel:
        return
    noise = recipe.expert.noise if recipe.expert else None
    if noise is None or isinstance(noise, TemperatureNoise):
        found = "no noise" if noise is None else "temperature noise"
        raise ConfigError(
            f"{method.name} pushes the student through a known noise channel and needs expert.noise.law = additive, "
            f"corrupted-argmax or absorbing; found {found}. Use {method.plain} instead."
        )
    is_other = isinstance(noise, CorruptedArgmaxNoise) or (
        isinstance(noise, AbsorbingNoise) and noise.error == "other"
    )
    if is_other and recipe.expert is not None and recipe.expert.kind == "local":
        raise ConfigError(
            f"{method.name} needs noise that is a channel, and noise that avoids the argmax is one only for an expert that is "
            "sure of its token (an oracle). Use expert.noise.law = 'additive', or 'absorbing' with error = 'uniform'."
        )


def _check_expert(recipe: Recipe, method: Method) -> None:
    needs = method.needs_expert(
        recipe.method.estimator, offline_is_reference=recipe.data.offline == "reference"
    )
    if needs and recipe.expert is None:
        raise ConfigError(f"{method.name} asks an expert for {needs} and the recipe has no [expert] table.")
    if recipe.expert is None:
        return
    if recipe.expert.kind == "oracle" and not isinstance(recipe.task, ModularAdditionTask):
        raise ConfigError(
            f"expert.kind = 'oracle' needs a task with an exact law; task.kind = {recipe.task.kind!r} has none."
        )


def _check_metrics(recipe: Recipe) -> None:
    """A metric that decides something must be measured."""
    asked = {"evaluate.best_metric": recipe.evaluate.best_metric}
    asked["stop.metric"] = recipe.stop.metric if recipe.stop is not None else None
    for setting, metric in asked.items():
        if metric in ("accuracy_sampled", "expert_kl_nats", "reverse_expert_kl_nats"):
            _require(
                recipe.evaluate.sampled,
                f"{setting} = {metric!r} is measured only with evaluate.sampled = true.",
            )
        if metric in ("expert_kl_nats", "reverse_expert_kl_nats"):
            _require(
                recipe.evaluate.expert_kl,
                f"{setting} = {metric!r} is measured only with evaluate.expert_kl = true.",
            )
            _require(recipe.expert is not None, f"{setting} = {metric!r} needs an [expert] table.")


def _check_compare(compare: CompareConfig) -> None:
    _require(len(compare.methods) > 0, "compare.methods is empty.")
    _require(len(compare.seeds) > 0, "compare.seeds is empty.")
    _require(compare.workers > 0, f"compare.workers must be > 0, got {compare.workers}.")
    _require(
        all(seed >= 0 for seed in compare.seeds), f"compare.seeds must be >= 0, got {list(compare.seeds)}."
    )
    for group in (compare.methods, compare.seeds):
        _require(len(set(group)) == len(group), f"compare lists something twice: {list(group)}.")
    for label in compare.methods:
        harmless = label == label.strip() and label and all(c.isalnum() or c in " ._=+-" for c in label)
        _require(
            bool(harmless) and not label.startswith("."),
            f"compare.methods names folders; use letters, digits, spaces and . _ = + - only, got {label!r}.",
        )
    for label, settings in compare.overrides.items():
        _require(label in compare.methods, f"compare.overrides.{label} names no entry of compare.methods.")
        for key in flatten(settings):
            section = key.split(".")[0]
            allowed = ("method", "optimizer", "train", "stop", "data")
            _require(
                section in allowed, f"compare.overrides.{label} may set {', '.join(allowed)}, not {key}."
            )
    for label in compare.methods:
        name = flatten(compare.overrides.get(label, {})).get("method.name", label)
        method_named(str(name))


def cell_recipe(recipe: Recipe, label: str, seed: int) -> Recipe:
    """The recipe of one cell of a comparison: that method and seed, that cell's overrides, nothing else changed.

    What the recipe's [method] table sets holds for every cell whose row has it.
    """
    assert recipe.compare is not None
    overrides = flatten(recipe.compare.overrides.get(label, {}))
    row = method_named(str(overrides.get("method.name", label)))
    table = recipe.to_table()
    kept = {k: v for k, v in table["method"].items() if k in row.options or v in row.estimators}
    table["method"] = {**kept, "name": row.name}
    table.pop("compare")
    return recipe_from_table(table, {**overrides, "seed": seed})


def narrowed(
    recipe: Recipe, *, methods: Sequence[str] | None = None, seeds: Sequence[int] | None = None
) -> Recipe:
    """The recipe with other methods or seeds to compare; overrides of methods that are left out go with them.

    Raises:
        ConfigError: an unknown method, a combination that cannot run, something listed twice, or nothing to compare.
    """
    if methods is None and seeds is None:
        return recipe
    if recipe.compare is None and methods is None:
        raise ConfigError(f"recipe {recipe.name} has no [compare] table, so the methods must be given.")
    compare = recipe.compare or CompareConfig(methods=tuple(methods or ()))
    chosen = compare.methods if methods is None else tuple(methods)
    compare = replace(
        compare,
        methods=chosen,
        seeds=compare.seeds if seeds is None else tuple(seeds),
        overrides={label: table for label, table in compare.overrides.items() if label in chosen},
    )
    recipe = replace(recipe, compare=compare)
    check_recipe(recipe)
    return recipe


def expert_recipe(recipe: Recipe) -> tuple[Recipe, Path] | None:
    """The run that makes the expert and its folder, if the recipe names one and its checkpoint is not there yet."""
    expert = recipe.expert
    if (
        expert is None
        or expert.recipe is None
        or expert.checkpoint is None
        or Path(expert.checkpoint).is_dir()
    ):
        return None
    first = replace(load_recipe(expert.recipe), task=recipe.task)
    check_recipe(first)
    return first, Path(expert.checkpoint).parent


def warm_start_recipe(recipe: Recipe) -> Recipe | None:
    """The run that comes before the method, as a recipe of its own; None where there is none to run.

    It takes the recipe's optimiser at a constant rate and stops on teacher-forced accuracy, so that every method of a
    comparison starts from one and the same student.
    """
    warm = recipe.warm_start
    if warm is None or warm.method is None:
        return None
    target = warm.until_teacher_forced_accuracy
    return replace(
        recipe,
        method=MethodConfig(name=warm.method),
        data=replace(recipe.data, offline=warm.offline or recipe.data.offline),
        train=replace(recipe.train, steps=warm.max_steps),
        optimizer=replace(recipe.optimizer, schedule="constant", final_rate=0.0),
        evaluate=replace(
            recipe.evaluate,
            every_steps=warm.check_every_steps,
            sampled=False,
            expert_kl=False,
            best_metric=None,
        ),
        stop=None if target is None else StopConfig(metric="teacher_forced_accuracy", target=target),
        warm_start=None,
        compare=None,
    )

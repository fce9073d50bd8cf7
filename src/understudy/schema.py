"""What can be set in a recipe: frozen dataclasses, one sentence a setting on its consequence where its name does not say it.

Each refuses values that can never be right; what only fits some methods or experts is checked in `config`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from understudy.errors import ConfigError
from understudy.settings import to_table


def require(condition: bool, message: str) -> None:
    if not condition:
        raise ConfigError(message)


def _require_rate(eta: float) -> None:
    require(0 <= eta < 1, f"eta must be in [0, 1), got {eta}.")


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
            require(getattr(self, name) > 0, f"{name} must be > 0, got {getattr(self, name)}.")
        require(
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
        require(
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
        require(self.temperature > 0, f"temperature must be > 0, got {self.temperature}.")


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
    dtype: Literal["float32", "bfloat16", "auto"] = "float32"
    """The precision of a local expert's law, for labels and samples alike. bfloat16 is another law, by about 1e-4 nats; auto
    takes it where it is faster: three million parameters and more, on a processor that multiplies it."""
    noise: NoiseConfig | None = None

    def __post_init__(self) -> None:
        if self.kind == "local":
            require(
                self.checkpoint is not None, "a local expert needs expert.checkpoint (a folder or hub id)."
            )
        else:
            require(
                self.checkpoint is None and self.recipe is None,
                "an oracle expert is the task's exact law and takes no expert.checkpoint or expert.recipe.",
            )
        if self.recipe is not None:
            require(
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
        require(one, "give either warm_start.checkpoint or warm_start.method, not both or none.")
        if self.method is not None:
            require(self.max_steps > 0, f"max_steps must be > 0, got {self.max_steps}.")
            require(
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
    """Trajectories of one forward pass; None: the whole batch, or pieces of like length where padding would exceed 5 %.
    Splitting does not change the gradient."""
    micro_batch_tokens: int | None = None
    """Most tokens of one forward pass, prompts and padding included, so that memory is bounded whatever the lengths; None: no
    limit. A trajectory that is longer goes alone. In place of micro_batch_size."""
    max_new_tokens: int | None = None
    """None: the task's."""
    mixed_precision: Literal["no", "bf16", "fp16"] = "no"
    rollout_batch_size: int | None = None
    """Trajectories that are written side by side; None: all of a round. Lower it when generation runs out of memory."""
    threads: int | None = None
    """CPU threads a process; None: OMP_NUM_THREADS, else one, or all cores (eight at most) for a student of a million parameters
    and more that trains alone on an idle machine. Other runs beside two threads slow both down: set 1 if there will be some."""
    compile: bool = False
    """Compile the student's training forward pass: half a minute at the start, for less time in each step of a long run. Needs a
    C++ compiler, and Triton on a GPU. Results differ by rounding."""
    device: Literal["auto", "cpu"] = "auto"

    def __post_init__(self) -> None:
        for name in ("steps", "batch_size", "samples_per_prompt", "steps_per_round"):
            require(getattr(self, name) > 0, f"{name} must be > 0, got {getattr(self, name)}.")
        require(
            self.batch_size % self.samples_per_prompt == 0,
            f"batch_size must be a multiple of samples_per_prompt, got {self.batch_size} and {self.samples_per_prompt}.",
        )
        for name in (
            "micro_batch_size",
            "micro_batch_tokens",
            "rollout_batch_size",
            "max_new_tokens",
            "threads",
        ):
            value = getattr(self, name)
            require(value is None or value > 0, f"{name} must be > 0, got {value}.")
        require(
            self.micro_batch_size is None or self.micro_batch_tokens is None,
            "give either train.micro_batch_size (trajectories) or train.micro_batch_tokens, not both.",
        )


@dataclass(frozen=True, kw_only=True)
class RolloutConfig:
    """How the student's responses are written."""

    drafts: Literal["auto", "coupled", "off"] = "auto"
    """auto: guesses of a response (the last one to its prompt, the expert's, the reference) are checked in one pass, and what
    is right is not decoded again. In float32 no token changes; in bf16 and fp16 rounding may change some, as another batch
    size does, and their law is the student's either way. coupled: also draws with the same random numbers each time a prompt
    comes round, by a rule that costs a little more a token, so that last epoch's response is mostly right; given the weights,
    responses are then not fresh samples. off: everything is decoded. Take auto if in doubt; coupled for several epochs over
    the same prompts with a student that is unsure of its tokens, where fresh draws soon leave every draft."""


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
        require(self.learning_rate > 0, f"learning_rate must be > 0, got {self.learning_rate}.")
        require(
            len(self.betas) == 2 and all(0 <= b < 1 for b in self.betas),
            f"betas must be two numbers in [0, 1), got {self.betas}.",
        )
        require(self.warmup_steps >= 0, f"warmup_steps must be >= 0, got {self.warmup_steps}.")
        require(self.weight_decay >= 0, f"weight_decay must be >= 0, got {self.weight_decay}.")
        require(0 <= self.final_rate <= 1, f"final_rate must be in [0, 1], got {self.final_rate}.")
        require(self.clip_norm > 0, f"clip_norm must be > 0, got {self.clip_norm}.")


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
            require(getattr(self, name) > 0, f"{name} must be > 0, got {getattr(self, name)}.")


@dataclass(frozen=True, kw_only=True)
class StopConfig:
    """Stop before `train.steps`: when a metric reaches a target, or has not improved for `patience` evaluations."""

    metric: MetricName
    target: float | None = None
    patience: int | None = None
    min_delta: float = 0.0

    def __post_init__(self) -> None:
        require(
            self.target is not None or self.patience is not None, "stop needs a target, a patience, or both."
        )


@dataclass(frozen=True, kw_only=True)
class CheckpointConfig:
    """Training state for --resume, every so many steps; the last `keep` are kept. 0: only the final model."""

    every_steps: int = 0
    keep: int = 1

    def __post_init__(self) -> None:
        require(self.every_steps >= 0, f"every_steps must be >= 0, got {self.every_steps}.")
        require(self.keep >= 1, f"keep must be >= 1, got {self.keep}.")


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
    rollouts: RolloutConfig = field(default_factory=RolloutConfig)
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

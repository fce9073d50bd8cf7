"""Causal language models as this library uses them: load or make one, its hidden states, its head.

B sequences, T positions, V vocabulary, D width. Models are transformers models throughout.
"""

from __future__ import annotations

import copy
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    GPT2Config,
    LlamaConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils import logging as transformers_logging

from understudy.errors import DataError, ModelError
from understudy.objectives.laws import Head
from understudy.schema import LoraConfig, NewModel

_HEAD_TOLERANCE = {torch.float32: 1e-4, torch.float64: 1e-8, torch.bfloat16: 0.1, torch.float16: 0.02}
"""Largest difference, relative to the largest logit, that the check of `head_of` takes for rounding."""


@contextmanager
def quiet_transformers():
    """No warnings or progress bars of the model library inside; errors still come through."""
    level = transformers_logging.get_verbosity()
    bars = transformers_logging.is_progress_bar_enabled()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(level)
        if bars:
            transformers_logging.enable_progress_bar()


def load_model(checkpoint: str, *, dtype: torch.dtype = torch.float32) -> PreTrainedModel:
    """A causal LM from a folder or the hub, in evaluation mode; safetensors only, no code from the checkpoint.

    Raises:
        ModelError: no such checkpoint, not a causal LM, unreadable weights, or weights that are not finite.
    """
    if _looks_like_path(checkpoint) and not Path(checkpoint).is_dir():
        raise ModelError(
            f"no checkpoint folder at {checkpoint}. Give a folder with config.json and *.safetensors, or a hub id."
        )
    try:
        with quiet_transformers():
            model = AutoModelForCausalLM.from_pretrained(
                checkpoint, dtype=dtype, use_safetensors=True, trust_remote_code=False
            )
    except (
        Exception
    ) as error:  # the loader raises half a dozen unrelated types; each is the user's checkpoint
        raise ModelError(f"cannot load a causal LM from {checkpoint}: {_first_line(error)}") from error
    for name, parameter in model.named_parameters():
        if not torch.isfinite(parameter).all():
            raise ModelError(
                f"{checkpoint} holds NaN or infinite weights in {name}. Use an earlier checkpoint of that run."
            )
    return model.eval()


def _looks_like_path(checkpoint: str) -> bool:
    return checkpoint.startswith((".", "/", "~")) or checkpoint.count("/") > 1 or Path(checkpoint).exists()


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def load_tokenizer(checkpoint: str) -> PreTrainedTokenizerBase:
    """The tokenizer of a checkpoint folder or hub id.

    Raises:
        ModelError: there is none, or it cannot be read.
    """
    try:
        with quiet_transformers():
            tokenizer = AutoTokenizer.from_pretrained(checkpoint, trust_remote_code=False)
    except Exception as error:
        raise ModelError(f"cannot load a tokenizer from {checkpoint}: {_first_line(error)}") from error
    if len(tokenizer) < 2:
        raise ModelError(
            f"the tokenizer of {checkpoint} has {len(tokenizer)} tokens: its files were not understood."
        )
    return tokenizer


def new_model(config: NewModel, *, vocab_size: int, eos_ids: frozenset[int], seed: int) -> PreTrainedModel:
    """A randomly initialised model; the same seed gives the same weights."""
    eos: Any = sorted(eos_ids) or None
    token_ids: dict[str, Any] = {"bos_token_id": None, "eos_token_id": eos, "pad_token_id": None}
    intermediate = config.intermediate or 4 * config.width
    if config.family == "llama":
        model_config: Any = LlamaConfig(
            vocab_size=vocab_size,
            hidden_size=config.width,
            intermediate_size=intermediate,
            num_hidden_layers=config.layers,
            num_attention_heads=config.heads,
            num_key_value_heads=config.heads,
            max_position_embeddings=config.max_positions,
            tie_word_embeddings=config.tied_embeddings,
            initializer_range=config.initializer_range,
            **token_ids,
        )
    else:
        model_config = GPT2Config(
            vocab_size=vocab_size,
            n_embd=config.width,
            n_inner=intermediate,
            n_layer=config.layers,
            n_head=config.heads,
            n_positions=config.max_positions,
            tie_word_embeddings=config.tied_embeddings,
            initializer_range=config.initializer_range,
            resid_pdrop=0.0,
            embd_pdrop=0.0,
            attn_pdrop=0.0,
            **token_ids,
        )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return AutoModelForCausalLM.from_config(model_config).eval()


def add_lora(model: PreTrainedModel, config: LoraConfig, *, seed: int) -> nn.Module:
    """Low-rank adapters on the named modules; everything else is frozen.

    Raises:
        ModelError: peft is not installed, or the model has no such modules.
    """
    try:
        import peft
    except ImportError:
        raise ModelError("student.lora needs the peft package: pip install 'understudy[peft]'.") from None
    settings = peft.LoraConfig(
        r=config.rank,
        lora_alpha=config.alpha,  # pyright: ignore[reportArgumentType]
        lora_dropout=config.dropout,
        target_modules=list(config.target_modules),
        task_type="CAUSAL_LM",
    )
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            adapted = peft.get_peft_model(model, settings)
    except ValueError as error:
        raise ModelError(f"student.lora.target_modules do not fit this model: {_first_line(error)}") from None
    for layer in (model.get_output_embeddings(), model.get_input_embeddings()):
        if layer is not None and any("lora_" in name for name, _ in layer.named_parameters()):
            raise ModelError(
                "student.lora.target_modules name the embeddings or the head; the exact losses read the head's weight and "
                "would not see an adapter on it. Leave them out."
            )
    return adapted


def inner_model(model: nn.Module) -> PreTrainedModel:
    """The transformers model inside what training wrapped around it (LoRA adapters stay active)."""
    get_base = getattr(model, "get_base_model", None)
    return get_base() if get_base is not None else model  # type: ignore[return-value]


def has_dropout(model: nn.Module) -> bool:
    """Whether some layer computes at random in training: drops things, as a layer of its own or by a rate that attention
    reads, or shakes what a router of experts sees."""

    def is_at_random(name: str, rate: object) -> bool:
        return ("drop" in name or "jitter" in name) and isinstance(rate, float) and rate > 0

    return any(
        (isinstance(module, nn.Dropout) and module.p > 0)
        or any(is_at_random(name, rate) for name, rate in vars(module).items())
        for module in model.modules()
    )


def backbone(model: nn.Module) -> nn.Module:
    """The model without its head: token ids -> last hidden states."""
    inner = inner_model(model)
    return getattr(inner, inner.base_model_prefix)


def hidden_states(model: nn.Module, token_BT: Tensor) -> Tensor:
    """Last hidden states [B, T, D] of right-padded rows.

    No attention mask is passed: under a causal mask no real token can see the padding to its right, and without a
    mask the attention kernel takes its fast causal path.
    """
    context = context_length(model)
    if context is not None and token_BT.shape[1] > context:
        raise DataError(
            f"a prompt with its response has {token_BT.shape[1]} tokens and a model's context holds {context}. Lower "
            "max_new_tokens, or drop long prompts (task.max_prompt_tokens)."
        )
    return backbone(model)(input_ids=token_BT, use_cache=False).last_hidden_state


def head_of(model: nn.Module, vocab_size: int | None = None) -> Head:
    """The head of the model, cut to the first `vocab_size` rows (rows beyond the tokenizer's can never be emitted)."""
    inner = inner_model(model)
    layer = inner.get_output_embeddings()
    if layer is None:
        raise ModelError(f"{type(inner).__name__} has no output embeddings; a causal LM is needed.")
    config = inner.config.get_text_config()
    scale = 1.0
    if getattr(config, "logit_scale", None):  # Cohere
        scale = float(config.logit_scale)
    elif getattr(config, "logits_scaling", None):  # Granite
        scale = 1.0 / float(config.logits_scaling)
    softcap = getattr(config, "final_logit_softcapping", None)
    bias = getattr(layer, "bias", None)
    weight: Tensor = layer.weight  # pyright: ignore[reportAssignmentType]
    size = vocab_size or weight.shape[0]
    return Head(
        weight_VD=weight if size == weight.shape[0] else weight[:size],
        bias_V=None if bias is None else bias[:size],
        scale=scale,
        softcap=None if softcap is None else float(softcap),
    )


@torch.no_grad()
def check_head(model: nn.Module, name: str) -> None:
    """Compare head(hidden states) with the model's own logits on a few tokens.

    Model families differ in what they do between the last hidden state and the logits; one that does something
    `head_of` does not know must be refused, not trained wrongly.

    Raises:
        ModelError: the two differ by more than rounding.
    """
    inner = inner_model(model)
    vocab = inner.get_output_embeddings().weight.shape[0]  # pyright: ignore
    token_BT = (torch.arange(8, device=inner.device)[None] * 7919) % min(
        vocab, inner.config.get_text_config().vocab_size
    )
    was_training = model.training
    model.eval()
    ours = head_of(model).logits(hidden_states(model, token_BT)).float()
    theirs = inner(input_ids=token_BT, use_cache=False).logits.float()
    model.train(was_training)
    error = (ours - theirs).abs().max() / theirs.abs().max().clamp_min(1e-6)
    if not error <= _HEAD_TOLERANCE[inner.dtype]:
        raise ModelError(
            f"{name} ({type(inner).__name__}) does something to its logits that the exact losses do not know: head(hidden) "
            f"differs from its own logits by {error:.2g} of the largest. This family is not supported."
        )


def context_length(model: nn.Module) -> int | None:
    """How many positions the model was built for; None if its config does not say."""
    return getattr(inner_model(model).config.get_text_config(), "max_position_embeddings", None)


def output_size(model: nn.Module) -> int:
    """Rows of the head; can exceed the tokenizer's size by padding rows."""
    return inner_model(model).get_output_embeddings().weight.shape[0]  # pyright: ignore


def generation_eos_ids(checkpoint: str | None) -> frozenset[int]:
    """All ids that end a response according to the checkpoint's generation config (often more than the tokenizer's one)."""
    if checkpoint is None:
        return frozenset()
    try:
        from transformers import GenerationConfig

        with quiet_transformers():
            eos = GenerationConfig.from_pretrained(checkpoint).eos_token_id
    except (OSError, ValueError):
        try:
            eos = (
                AutoConfig.from_pretrained(checkpoint, trust_remote_code=False).get_text_config().eos_token_id
            )
        except (OSError, ValueError):
            eos = None
    if eos is None:
        return frozenset()
    return frozenset(eos if isinstance(eos, list) else [eos])


def merged(model: nn.Module) -> PreTrainedModel:
    """A plain transformers model: the model itself, or a copy with its LoRA adapters folded in."""
    if hasattr(model, "merge_and_unload"):
        return copy.deepcopy(model).merge_and_unload()  # type: ignore[operator]
    return model  # type: ignore[return-value]


def merged_weights(model: nn.Module, dtype: torch.dtype | None = None) -> dict[str, Tensor]:
    """The weights of `merged(model)` on the host, under their names there. The model stays as it is, and no second one is made:
    an adapter is added to its layer's weight alone, one layer after another.

    Args:
        dtype: of the floating-point weights; None: as they are.
    """
    inner = inner_model(model)
    adapted = {f"{name}.weight": m for name, m in inner.named_modules() if hasattr(m, "get_delta_weight")}
    found: dict[str, Tensor] = {}
    copies: dict[tuple[int, torch.Size], Tensor] = {}  # weights that are tied stay one
    for name, weight in inner.state_dict().items():
        plain = name.replace(".base_layer.", ".")
        if ".lora_" in name:
            continue
        if plain in adapted:
            layer = adapted.pop(plain)
            deltas: list[Tensor] = [layer.get_delta_weight(a) for a in layer.active_adapters]  # pyright: ignore
            found[plain] = _on_host(weight + sum(deltas), dtype)
            continue
        key = weight.data_ptr(), weight.shape
        if key not in copies:
            copies[key] = _on_host(weight, dtype)
        found[plain] = copies[key]
    assert not adapted, f"adapters without a weight: {sorted(adapted)}"
    return found


def _on_host(weight: Tensor, dtype: torch.dtype | None) -> Tensor:
    return weight.detach().to(device="cpu", dtype=dtype if weight.is_floating_point() else None)

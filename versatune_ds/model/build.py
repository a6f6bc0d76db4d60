"""Load or build a transformers model, and replace its head by one that returns the loss by domain.

The model keeps its class and its parameter names; only `lm_head` becomes a `DomainLossHead` with the same weight. So
checkpoints, tied embeddings, LoRA and export need no conversion.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn
from transformers import (
    CONFIG_MAPPING,
    AutoConfig,
    AutoModelForCausalLM,
    GenerationConfig,
    PretrainedConfig,
    PreTrainedModel,
)
from transformers.dynamic_module_utils import custom_object_save
from transformers.integrations import HfDeepSpeedConfig
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.utils import TRANSFORMERS_DYNAMIC_MODULE_NAME

from versatune_ds.config import ModelConfig
from versatune_ds.data.batch import IGNORE_INDEX, Batch
from versatune_ds.domains import nearest_name
from versatune_ds.kernels.domain_loss import DomainSums
from versatune_ds.kernels.linear_head import DomainLossHead
from versatune_ds.kernels.settings import LossSettings
from versatune_ds.log import first_line
from versatune_ds.model.named_model import adapters_line, check_saved_model
from versatune_ds.model.router_loss import router_loss_of
from versatune_ds.model.saved_weights import check_loading_info, check_saved_weights, without_load_report
from versatune_ds.model.sizes import num_learned_positions, sizes_of
from versatune_ds.model.trainable_parameters import choose_what_is_trained

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


class DomainLosses(NamedTuple):
    """The losses of one forward pass: tensors in a plain tuple, which ZeRO-3's hooks can walk through.

    Shape legend: **K** domains, **N** positions of the micro-batch.
    """

    loss_sum: torch.Tensor
    """Sum of the weighted token losses, fp32 scalar with gradient."""
    loss_sum_K: torch.Tensor
    """Unweighted loss sums by domain, float64."""
    loss_sq_sum_K: torch.Tensor
    """Sums of squared token losses by domain, float64."""
    num_loss_tokens_K: torch.Tensor
    """Loss tokens by domain, int64."""
    token_losses_N: torch.Tensor
    """Loss of every position, zero where the label is ignored; empty unless `per_token`."""
    router_loss: torch.Tensor
    """Load-balancing loss times its coefficient, a scalar with gradient; 0 in evaluation, and where there is none."""

    @property
    def by_domain(self) -> DomainSums:
        """Return the three sums by domain as one value."""
        return DomainSums(self.loss_sum_K, self.loss_sq_sum_K, self.num_loss_tokens_K)


class DomainModel(nn.Module):
    """Run a causal language model on packed rows and return its loss by domain.

    Args:
        causal_lm: A transformers model; its head is replaced in place.
        num_domains: K.
    """

    def __init__(self, causal_lm: PreTrainedModel, *, num_domains: int) -> None:
        super().__init__()
        self.causal_lm = causal_lm
        self.num_domains = num_domains
        linear = causal_lm.get_output_embeddings()
        head_name = next(name for name, module in causal_lm.named_modules() if module is linear)
        parent, _, attribute = head_name.rpartition(".")
        settings = LossSettings(softcap=softcap_of(causal_lm))
        setattr(causal_lm.get_submodule(parent), attribute, DomainLossHead.from_linear(linear, settings=settings))
        self.num_positions = num_learned_positions(causal_lm)
        self.router_loss = router_loss_of(causal_lm)

    def forward(
        self,
        *,
        input_ids: torch.Tensor,
        labels: torch.Tensor,
        positions: torch.Tensor,
        domain_ids: torch.Tensor,
        valid_index: torch.Tensor | None = None,
        num_valid: int | None = None,
        per_token: bool = False,
        is_token: torch.Tensor | None = None,
        grad_scale: float | None = None,
    ) -> DomainLosses:
        """Return the losses of a micro-batch of packed rows, all [B, T] int64.

        `grad_scale` is the factor of the later backward pass, where it is known; see `DomainLossHead.forward`.

        Attention never crosses examples: positions restart with every example, and from that transformers builds
        its packed mask (sdpa, eager) or sequence lengths (flash attention); a cache or a mask would switch it off.
        """
        if self.num_positions is not None:  # examples fit (positions.py); the padding of a long row may not
            positions = positions.remainder(self.num_positions)
        decoder = self.causal_lm.get_decoder()
        has_router_loss = self.router_loss is not None and self.training
        extra = {"output_router_logits": True} if has_router_loss else {}
        output = decoder(input_ids=input_ids, position_ids=positions, attention_mask=None, use_cache=False, **extra)
        hidden = output[0]
        result = self.causal_lm.get_output_embeddings()(
            hidden,
            labels,
            domain_ids,
            num_domains=self.num_domains,
            valid_index=valid_index,
            num_valid=num_valid,
            per_token=per_token,
            grad_scale=grad_scale,
        )
        token_losses = result.token_losses_N if per_token else hidden.new_zeros(0)
        router_loss = self.router_loss(output.router_logits, is_token) if has_router_loss else hidden.new_zeros(())
        return DomainLosses(result.loss, *result.by_domain, token_losses, router_loss)


def compile_layers(causal_lm: nn.Module) -> None:
    """Compile the decoder's layers in place, one by one, so that they share one compiled form and names do not change.

    The head is excluded: its kernel is compiled already.
    """
    for module in causal_lm.modules():
        if isinstance(module, GradientCheckpointingLayer):
            module.compile()


def model_inputs(batch: Batch, *, device: torch.device, marks_tokens: bool = False) -> dict[str, Any]:
    """Return a micro-batch as the arguments of `DomainModel.forward`, on a device.

    Args:
        batch: Rows on the CPU.
        device: Where the model runs.
        marks_tokens: Whether to add `is_token`, which only a router loss needs.
    """
    tensors = {
        "input_ids": batch.input_ids,
        "labels": batch.labels,
        "positions": batch.positions,
        "domain_ids": batch.domain_ids,
        "valid_index": batch.valid_index,
    }
    if marks_tokens:
        tensors["is_token"] = _is_token(batch)
    on_device = {name: tensor.to(device, non_blocking=True) for name, tensor in tensors.items()}
    return {**on_device, "num_valid": batch.num_valid}


def _is_token(batch: Batch) -> torch.Tensor:
    """Return which positions are not padding, bool [B, T]; padding is a last segment of a row without loss."""
    is_last = batch.segment_ids == batch.segment_ids[:, -1:]
    bears_loss = ((batch.labels != IGNORE_INDEX) & is_last).any(dim=1, keepdim=True)
    return ~is_last | bears_loss


def softcap_of(causal_lm: PreTrainedModel) -> float:
    """Return the bound of a model's logits, as in softcap * tanh(logits / softcap); 0 for none."""
    return sizes_of(causal_lm.config).softcap


def special_ids_of_tokenizer(tokenizer: Any) -> dict[str, int]:
    """Return the special ids that a model made from config gets from its tokenizer."""
    ids = {f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in ("bos", "eos", "pad")}
    return {name: token_id for name, token_id in ids.items() if token_id is not None}


def build_causal_lm(
    model: ModelConfig,
    *,
    precision: str,
    vocab_size: int,
    special_ids: dict[str, int],
    zero3_config: dict[str, Any] | None = None,
    reads_weights: bool = True,
) -> PreTrainedModel:
    """Load a saved transformers model, or make one from config with random weights.

    Args:
        model: The recipe's model section.
        precision: fp32, bf16 or fp16.
        vocab_size: Length of the tokenizer; the model must have at least as many embeddings.
        special_ids: bos, eos and pad ids for a model made from config.
        zero3_config: DeepSpeed's config under ZeRO-3: a saved model is then loaded in parts, so that no process ever
            stores all of it. A model made from config is not, so that its weights do not depend on the stage.
        reads_weights: False builds a saved model from its config alone, to count parameters; no weights are read.

    Raises:
        ValueError: If the model cannot be loaded, a config key is unknown to the model type, or the model has fewer
            embeddings than the tokenizer has ids.
    """
    # Check the files first: ZeRO-3's loader reports only a part of what does not fit.
    check_saved_model(model)
    is_loaded_in_parts = zero3_config is not None and model.from_config is None
    is_checked = reads_weights and check_model_weights(model)
    # Load or build. transformers looks for this object while it loads; it has an effect as long as it exists.
    zero3_switch = HfDeepSpeedConfig(zero3_config) if is_loaded_in_parts else None
    try:
        if model.from_config is not None or not reads_weights:
            config = _config_of(model, vocab_size=vocab_size, special_ids=special_ids)
            causal_lm = _make(model, config, dtype=DTYPES[precision])
        else:
            causal_lm = _load(model, dtype=DTYPES[precision])
    except (ValueError, ImportError) as error:
        is_attention = "attention implementation" in str(error) or "flash" in str(error).lower()
        if not is_attention or str(error).startswith("model.name_or_path:"):
            raise
        raise ValueError(f"model.attention: {model.attention} is not supported here; use eager ({error})") from None
    except OSError as error:
        reason = first_line(error)
        raise ValueError(f"model.name_or_path: cannot load {model.name_or_path!r}: {reason}") from None
    # Check the vocabulary, then freeze parameters or add adapters.
    _check_vocabulary(causal_lm, vocab_size=vocab_size)
    choose_what_is_trained(causal_lm, model)
    del zero3_switch
    if is_loaded_in_parts and not is_checked:  # a model of the Hub has been downloaded by now
        check_model_weights(model)
    if model.gradient_checkpointing:
        _enable_gradient_checkpointing(causal_lm)
    return causal_lm


def _check_vocabulary(causal_lm: PreTrainedModel, *, vocab_size: int) -> None:
    """Raise ValueError if a model has fewer embeddings than its tokenizer has ids."""
    num_embeddings = sizes_of(causal_lm.config).vocabulary
    if num_embeddings < vocab_size:
        raise ValueError(
            f"model.tokenizer: {vocab_size} token ids, but the model has {num_embeddings} embeddings; "
            "use the model's own tokenizer"
        )


def _enable_gradient_checkpointing(causal_lm: PreTrainedModel) -> None:
    """Enable gradient checkpointing under the method name that this transformers version has."""
    # transformers 5.24 renamed the method and will drop the old name in 6; older versions have only the old one.
    is_renamed = hasattr(causal_lm, "activation_checkpointing_enable")
    enable = causal_lm.activation_checkpointing_enable if is_renamed else causal_lm.gradient_checkpointing_enable
    enable({"use_reentrant": False})


def save_model_settings(causal_lm: Any, folder: Path) -> None:
    """Write all of a model except its weights: config, generation settings, and its own code if it has any."""
    causal_lm.config.save_pretrained(folder)
    if type(causal_lm).__module__.startswith(TRANSFORMERS_DYNAMIC_MODULE_NAME):
        custom_object_save(causal_lm, folder, config=causal_lm.config)
    if causal_lm.generation_config is not None:
        causal_lm.generation_config.save_pretrained(folder)


def stopping_settings(model: ModelConfig) -> list[Any]:
    """Return the settings with a saved model's stop tokens: generation settings or config; empty if neither loads."""
    trust = {"trust_remote_code": model.trust_remote_code}
    with contextlib.suppress(OSError, ValueError):
        return [GenerationConfig.from_pretrained(model.name_or_path)]
    with contextlib.suppress(OSError, ValueError):
        return [AutoConfig.from_pretrained(model.name_or_path, **trust)]
    return []


def _config_of(model: ModelConfig, *, vocab_size: int, special_ids: dict[str, int]) -> PretrainedConfig:
    """Return the transformers config from the recipe's mapping, or from a folder or Hub name."""
    if model.from_config is not None:
        return config_from_mapping(model.from_config, vocab_size=vocab_size, special_ids=special_ids)
    return AutoConfig.from_pretrained(model.name_or_path, trust_remote_code=model.trust_remote_code)


def _make(model: ModelConfig, config: PretrainedConfig, *, dtype: torch.dtype) -> PreTrainedModel:
    """Return a model with random weights."""
    return AutoModelForCausalLM.from_config(
        config, dtype=dtype, attn_implementation=model.attention, trust_remote_code=model.trust_remote_code
    )


def _load(model: ModelConfig, *, dtype: torch.dtype) -> PreTrainedModel:
    """Return the model with the weights of a folder or Hub name; raise ValueError if they do not fit."""
    with without_load_report():
        causal_lm, info = AutoModelForCausalLM.from_pretrained(
            model.name_or_path,
            dtype=dtype,
            attn_implementation=model.attention,
            trust_remote_code=model.trust_remote_code,
            output_loading_info=True,
            ignore_mismatched_sizes=True,
        )
    check_loading_info(str(model.name_or_path), info, causal_lm=causal_lm)
    if getattr(causal_lm, "peft_config", None):
        raise ValueError(adapters_line(str(model.name_or_path)))
    return causal_lm


def check_model_weights(model: ModelConfig) -> bool:
    """Compare a saved model's files with its config before loading; return whether that was possible.

    Raises:
        ValueError: If they do not fit, see `check_saved_weights`.
    """
    if model.name_or_path is None:
        return False
    try:
        config = AutoConfig.from_pretrained(model.name_or_path, trust_remote_code=model.trust_remote_code)
        with torch.device("meta"):
            plain = _make(model.model_copy(update={"attention": "eager"}), config, dtype=torch.float32)
    except (OSError, ImportError, ValueError):
        return False  # the loader will report what is wrong with the config
    return check_saved_weights(model.name_or_path, model_class=type(plain), config=plain.config)


def config_from_mapping(mapping: dict[str, Any], *, vocab_size: int, special_ids: dict[str, int]) -> Any:
    """Return the transformers config of a mapping, with the size of the tokenizer's vocabulary.

    Raises:
        ValueError: If the model type or a key is unknown; transformers itself would ignore a misspelt key.
    """
    # Find the model type.
    values = {"vocab_size": vocab_size, **special_ids, **mapping}
    model_type = values.pop("model_type")
    try:
        known = AutoConfig.for_model(model_type)
    except ValueError:
        hint = nearest_name(model_type, list(CONFIG_MAPPING)) if isinstance(model_type, str) else ""
        hint = hint if hint.startswith("did you mean") else "expected llama, qwen3, mistral, ..."
        raise ValueError(f"model.from_config.model_type: {model_type!r} is not known to transformers; {hint}") from None
    # Refuse unknown keys, and two names of one key with different values.
    known_keys: Sequence[str] = sorted({*known.to_dict(), *known.attribute_map, "rope_theta"})
    for key in mapping:
        other = known.attribute_map.get(key)
        if key != "model_type" and key not in known_keys:
            raise ValueError(f"model.from_config.{key}: unknown to {model_type}; {nearest_name(key, known_keys)}")
        if other is not None and mapping.get(other, mapping[key]) != mapping[key]:
            raise ValueError(
                f"model.from_config.{key}: {mapping[key]!r}, but its other name {other} is {mapping[other]!r}; "
                "remove one of the two"
            )
    return AutoConfig.for_model(model_type, **{known.attribute_map.get(key, key): v for key, v in values.items()})

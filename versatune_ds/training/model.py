"""Build the language model and give it a head that returns the loss by domain.

The one idea: the model stays the transformers model it was, with its own parameter names; only `lm_head` becomes a
`DomainLossHead` that holds the very same weight. So checkpoints, tied embeddings, LoRA and export need no translation.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn
from transformers import CONFIG_MAPPING, AutoConfig, AutoModelForCausalLM, PretrainedConfig, PreTrainedModel
from transformers.dynamic_module_utils import custom_object_save
from transformers.integrations import HfDeepSpeedConfig
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.utils import TRANSFORMERS_DYNAMIC_MODULE_NAME

from versatune_ds.config import ModelConfig
from versatune_ds.data.batch import Batch
from versatune_ds.domains import nearest_name
from versatune_ds.kernels.linear_head import DomainLossHead
from versatune_ds.kernels.settings import LossSettings
from versatune_ds.training.trained import choose_what_is_trained

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


class DomainLosses(NamedTuple):
    """Hold what one forward pass returns: tensors in a plain tuple, which ZeRO-3's hooks can walk.

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
    """Loss of every position, zero where no loss is asked for; empty unless asked for."""


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
        grad_scale: float | None = None,
    ) -> DomainLosses:
        """Return the losses of a micro-batch of packed rows, all [B, T] int64.

        What backward will multiply by is `grad_scale`, where it is known; see `DomainLossHead.forward`.

        Attention never crosses examples: positions restart with every example, and from that transformers builds
        its packed mask (sdpa, eager) or sequence lengths (flash attention); a cache or a mask would switch it off.
        """
        decoder = self.causal_lm.get_decoder()
        hidden = decoder(input_ids=input_ids, position_ids=positions, attention_mask=None, use_cache=False)[0]
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
        return DomainLosses(
            result.loss, result.loss_sum_K, result.loss_sq_sum_K, result.num_loss_tokens_K, token_losses
        )


def compile_layers(causal_lm: nn.Module) -> None:
    """Compile the decoder's layers in place, each by itself: they share one compiled form, and names stay as they are.

    The head stays as it is: its kernel is compiled already.
    """
    for module in causal_lm.modules():
        if isinstance(module, GradientCheckpointingLayer):
            module.compile()


def model_inputs(batch: Batch, *, device: torch.device) -> dict[str, Any]:
    """Return a micro-batch as the arguments of `DomainModel.forward`, on a device."""
    tensors = {
        "input_ids": batch.input_ids,
        "labels": batch.labels,
        "positions": batch.positions,
        "domain_ids": batch.domain_ids,
        "valid_index": batch.valid_index,
    }
    on_device = {name: tensor.to(device, non_blocking=True) for name, tensor in tensors.items()}
    return {**on_device, "num_valid": batch.num_valid}


def softcap_of(causal_lm: PreTrainedModel) -> float:
    """Return the bound a model puts on its logits by softcap * tanh(logits / softcap); 0 for none."""
    return float(getattr(causal_lm.config.get_text_config(), "final_logit_softcapping", None) or 0.0)


def special_ids_of_tokenizer(tokenizer: Any) -> dict[str, int]:
    """Return the ids that a model made from config takes over from its tokenizer."""
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
    """Load or make the transformers model.

    Args:
        model: The recipe's model section.
        precision: fp32, bf16 or fp16.
        vocab_size: Length of the tokenizer; embeddings must have at least as many rows.
        special_ids: bos, eos and pad ids for a model made from config.
        zero3_config: DeepSpeed's config under ZeRO-3: a saved model is then loaded in parts, so that no process ever
            holds all of it. A model made from config is built whole, so that its weights do not depend on the stage.
        reads_weights: False makes a saved model from its config alone, for counting; nothing large is read.

    Raises:
        ValueError: If a config key is unknown to the model type, or the model cannot hold the tokenizer's ids.
    """
    is_loaded_in_parts = zero3_config is not None and model.from_config is None
    # transformers looks for this object while it loads; it acts as long as it lives.
    keeper = HfDeepSpeedConfig(zero3_config) if is_loaded_in_parts else None
    try:
        if model.from_config is not None or not reads_weights:
            config = _config_of(model, vocab_size=vocab_size, special_ids=special_ids)
            causal_lm = _make(model, config, dtype=DTYPES[precision])
        else:
            causal_lm = _load(model, dtype=DTYPES[precision])
    except (ValueError, ImportError) as error:
        if "attention implementation" not in str(error) and "flash" not in str(error).lower():
            raise
        raise ValueError(f"model.attention: {model.attention} is not supported here; use eager ({error})") from None
    except OSError as error:
        reason = str(error).strip().splitlines()[0]
        raise ValueError(f"model.name_or_path: cannot load {model.name_or_path!r}: {reason}") from None
    num_embeddings = causal_lm.config.get_text_config().vocab_size
    if num_embeddings < vocab_size:
        raise ValueError(
            f"model.tokenizer: {vocab_size} token ids, but the model has {num_embeddings} embeddings; "
            "use the model's own tokenizer"
        )
    choose_what_is_trained(causal_lm, model)
    del keeper
    if model.gradient_checkpointing:
        # transformers 5.24 renamed the method and will drop the old name in 6; older versions know only that one.
        is_renamed = hasattr(causal_lm, "activation_checkpointing_enable")
        enable = causal_lm.activation_checkpointing_enable if is_renamed else causal_lm.gradient_checkpointing_enable
        enable({"use_reentrant": False})
    return causal_lm


def save_model_settings(causal_lm: Any, folder: Path) -> None:
    """Write all of a model but its weights: config, settings for generation, and its code where it came with it."""
    causal_lm.config.save_pretrained(folder)
    if type(causal_lm).__module__.startswith(TRANSFORMERS_DYNAMIC_MODULE_NAME):
        custom_object_save(causal_lm, folder, config=causal_lm.config)
    if causal_lm.generation_config is not None:
        causal_lm.generation_config.save_pretrained(folder)


def _config_of(model: ModelConfig, *, vocab_size: int, special_ids: dict[str, int]) -> PretrainedConfig:
    """Return the transformers config of the recipe's mapping, or of a folder or Hub name."""
    if model.from_config is not None:
        return config_from_mapping(model.from_config, vocab_size=vocab_size, special_ids=special_ids)
    return AutoConfig.from_pretrained(model.name_or_path, trust_remote_code=model.trust_remote_code)


def _make(model: ModelConfig, config: PretrainedConfig, *, dtype: torch.dtype) -> PreTrainedModel:
    """Return the model of a config with random weights."""
    return AutoModelForCausalLM.from_config(
        config, dtype=dtype, attn_implementation=model.attention, trust_remote_code=model.trust_remote_code
    )


def _load(model: ModelConfig, *, dtype: torch.dtype) -> PreTrainedModel:
    """Return the model with the weights of a folder or Hub name."""
    return AutoModelForCausalLM.from_pretrained(
        model.name_or_path,
        dtype=dtype,
        attn_implementation=model.attention,
        trust_remote_code=model.trust_remote_code,
    )


def config_from_mapping(mapping: dict[str, Any], *, vocab_size: int, special_ids: dict[str, int]) -> Any:
    """Return the transformers config of a mapping, its vocabulary taken from the tokenizer.

    Raises:
        ValueError: If the model type or a key is unknown; transformers itself would ignore a misspelt key.
    """
    values = {"vocab_size": vocab_size, **special_ids, **mapping}
    model_type = values.pop("model_type")
    try:
        known = AutoConfig.for_model(model_type)
    except ValueError:
        hint = nearest_name(model_type, list(CONFIG_MAPPING)) if isinstance(model_type, str) else ""
        hint = hint if hint.startswith("did you mean") else "expected llama, qwen3, mistral, ..."
        raise ValueError(f"model.from_config.model_type: {model_type!r} is not known to transformers; {hint}") from None
    known_keys: Sequence[str] = sorted({*known.to_dict(), "rope_theta"})
    for key in mapping:
        if key != "model_type" and key not in known_keys:
            raise ValueError(f"model.from_config.{key}: unknown to {model_type}; {nearest_name(key, known_keys)}")
    return AutoConfig.for_model(model_type, **values)

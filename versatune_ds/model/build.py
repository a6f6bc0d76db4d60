"""Load a saved transformers model, or make one from config, as the recipe's model section asks.

Configs are checked for misspelt keys, and files against the config, before weights are read.
"""

from __future__ import annotations

import contextlib
import copy
import logging
from collections.abc import Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
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
from transformers.utils import TRANSFORMERS_DYNAMIC_MODULE_NAME

from versatune_ds.config import ModelConfig
from versatune_ds.domains import nearest_name
from versatune_ds.log import first_line
from versatune_ds.model.attention import register_varlen
from versatune_ds.model.attention_choice import Machine, attention_needs, choose_attention, machine_here
from versatune_ds.model.four_bit import (
    check_four_bit_installed,
    check_is_not_quantised,
    four_bit_config,
    keep_packed_form,
)
from versatune_ds.model.named_model import adapters_line, check_saved_model
from versatune_ds.model.saved_weights import check_loading_info, check_saved_weights, without_load_report
from versatune_ds.model.sizes import sizes_of
from versatune_ds.model.trainable_parameters import choose_what_is_trained

logger = logging.getLogger(__name__)

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


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
    device: torch.device | None = None,
    machine: Machine | None = None,
) -> PreTrainedModel:
    """Load a saved transformers model, or make one from config with random weights.

    Random weights are a function of torch's seed and the kind of device: those made on a GPU are other numbers than
    those made on a CPU. On ranks of one kind of device they are equal, and below a partitioned load DeepSpeed
    broadcasts rank 0's in any case.

    Args:
        model: The recipe's model section.
        precision: fp32, bf16 or fp16.
        vocab_size: Length of the tokenizer; the model must have at least as many embeddings.
        special_ids: bos, eos and pad ids for a model made from config.
        zero3_config: DeepSpeed's config under ZeRO-3: a saved model is then loaded in parts, so that no process ever
            stores all of it. A model made from config is not, so that its weights do not depend on the stage.
        reads_weights: False builds a saved model from its config alone, to count parameters; no weights are read, and
            none are quantised.
        device: GPU on which weights are made or to which they are loaded; None for the CPU, or the device of a
            surrounding `with torch.device(...)`. A load in parts places its partitions itself.
        machine: Where it will run, which decides its attention; by default this process's device.

    Raises:
        ValueError: If the model cannot be loaded, a config key is unknown to the model type, its attention cannot be
            computed as `model.attention` says, or the model has fewer embeddings than the tokenizer has ids.
    """
    check_saved_model(model)  # first, since ZeRO-3's loader reports only a part of what does not fit
    is_loaded_in_parts = zero3_config is not None and model.from_config is None
    is_checked = reads_weights and check_model_weights(model)
    # Load or build. transformers looks for this object while it loads; it has an effect as long as it exists.
    zero3_switch = HfDeepSpeedConfig(zero3_config) if is_loaded_in_parts else None
    if model.load_in_4bit and reads_weights:
        check_four_bit_installed()
    with _errors_with_keys(model):
        config = _config_of(model, vocab_size=vocab_size, special_ids=special_ids)
        if model.load_in_4bit:
            check_is_not_quantised(config, name=str(model.name_or_path))
        attention = _attention_of(model, config, machine=machine or machine_here(precision))
        if model.from_config is not None or not reads_weights:
            causal_lm = _make(model, config, dtype=DTYPES[precision], attention=attention, device=device)
        else:
            place = None if is_loaded_in_parts else device
            causal_lm = _load(model, dtype=DTYPES[precision], attention=attention, device=place)
    # Check the vocabulary, then freeze parameters or add adapters.
    _check_vocabulary(causal_lm, vocab_size=vocab_size)
    choose_what_is_trained(causal_lm, model)
    del zero3_switch
    if is_loaded_in_parts and not is_checked:  # a model of the Hub has been downloaded by now
        check_model_weights(model)
    if model.gradient_checkpointing:
        _enable_gradient_checkpointing(causal_lm)
    return causal_lm


@contextlib.contextmanager
def _errors_with_keys(model: ModelConfig) -> Iterator[None]:
    """Turn transformers' errors about attention and missing files into ValueError with the key they are about."""
    try:
        yield
    except (ValueError, ImportError) as error:
        is_attention = "attention implementation" in str(error) or "flash" in str(error).lower()
        if not is_attention or str(error).startswith("model."):
            raise
        raise ValueError(f"model.attention: {model.attention} is not supported here ({error}); use eager") from None
    except OSError as error:
        reason = first_line(error)
        raise ValueError(f"model.name_or_path: cannot load {model.name_or_path!r}: {reason}") from None


def _attention_of(model: ModelConfig, config: PretrainedConfig, *, machine: Machine) -> str:
    """Choose a model's attention and return its name in transformers' interface, where ours is registered first."""
    choice = choose_attention(model.attention, needs=attention_needs(config), machine=machine)
    if choice.name == "varlen":
        register_varlen()
    return choice.registered_name


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
    """Write all of a model except its weights: config, generation settings, and its own code if it has any.

    That its weights were loaded in 4 bits is left out: an export has weights of the usual kind.
    """
    config = causal_lm.config
    if hasattr(config, "quantization_config"):
        config = copy.deepcopy(config)
        del config.quantization_config
    config.save_pretrained(folder)
    if type(causal_lm).__module__.startswith(TRANSFORMERS_DYNAMIC_MODULE_NAME):
        custom_object_save(causal_lm, folder, config=config)
    if causal_lm.generation_config is not None:
        causal_lm.generation_config.save_pretrained(folder)


def stopping_settings(model: ModelConfig) -> list[Any]:
    """Return the settings with a saved model's stop tokens: generation settings or config; empty if neither loads."""
    with contextlib.suppress(OSError, ValueError):
        return [GenerationConfig.from_pretrained(model.name_or_path)]
    with contextlib.suppress(OSError, ValueError):
        return [AutoConfig.from_pretrained(model.name_or_path, trust_remote_code=model.trust_remote_code)]
    return []


def config_without_download(model: ModelConfig) -> PretrainedConfig | None:
    """Return the transformers config of the recipe's mapping or folder; None if it is elsewhere or cannot be read."""
    if model.from_config is not None:
        return config_from_mapping(model.from_config, vocab_size=model.tokenizer_vocab_size, special_ids={})
    if not (Path(str(model.name_or_path)) / "config.json").is_file():
        return None
    with contextlib.suppress(OSError, ValueError):
        return AutoConfig.from_pretrained(model.name_or_path, trust_remote_code=model.trust_remote_code)
    return None


def _config_of(model: ModelConfig, *, vocab_size: int, special_ids: dict[str, int]) -> PretrainedConfig:
    """Return the transformers config from the recipe's mapping, or from a folder or Hub name."""
    if model.from_config is not None:
        return config_from_mapping(model.from_config, vocab_size=vocab_size, special_ids=special_ids)
    return AutoConfig.from_pretrained(model.name_or_path, trust_remote_code=model.trust_remote_code)


def _make(
    model: ModelConfig,
    config: PretrainedConfig,
    *,
    dtype: torch.dtype,
    attention: str,
    device: torch.device | None = None,
) -> PreTrainedModel:
    """Return a model with random weights, made on a GPU where one is given; `attention` is a name of transformers'.

    Every weight is drawn twice: by the constructor of PyTorch's module, and then by transformers. Both passes stay. On
    a CPU, where they take a minute for 1.2e9 parameters, the second one's numbers depend on the first one's draws, and
    runs must keep their initial weights. On a GPU both together write 5 GB, a few milliseconds.
    """
    with device if _is_gpu(device) else contextlib.nullcontext():
        return AutoModelForCausalLM.from_config(
            config, dtype=dtype, attn_implementation=attention, trust_remote_code=model.trust_remote_code
        )


def _is_gpu(device: torch.device | None) -> bool:
    """Return whether weights are made on a device other than the CPU, where their numbers must stay."""
    return device is not None and device.type != "cpu"


def _load(
    model: ModelConfig, *, dtype: torch.dtype, attention: str, device: torch.device | None = None
) -> PreTrainedModel:
    """Return the model with the weights of a folder or Hub name; raise ValueError if they do not fit.

    To a GPU the files are read directly, one weight at a time, so that the host never stores the model.
    """
    place: dict[str, Any] = {"device_map": {"": device}} if _is_gpu(device) else {}
    if place and find_spec("accelerate") is None:
        logger.info("the model is loaded through the host's memory; pip install accelerate loads it straight to a GPU")
        place = {}
    if model.load_in_4bit:
        place["quantization_config"] = four_bit_config(dtype)
    with without_load_report():
        causal_lm, info = AutoModelForCausalLM.from_pretrained(
            model.name_or_path,
            dtype=dtype,
            attn_implementation=attention,
            trust_remote_code=model.trust_remote_code,
            output_loading_info=True,
            ignore_mismatched_sizes=True,
            **place,
        )
    check_loading_info(str(model.name_or_path), info, causal_lm=causal_lm)
    if getattr(causal_lm, "peft_config", None):
        raise ValueError(adapters_line(str(model.name_or_path)))
    if model.load_in_4bit:
        keep_packed_form(causal_lm)
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
            plain = _make(model, config, dtype=torch.float32, attention="eager")
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

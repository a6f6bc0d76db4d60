"""Define the model section of a recipe, with `model.lora`. The weights have one origin: a saved model or a config."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Literal, get_args

from pydantic import Field, SerializerFunctionWrapHandler, field_validator, model_serializer, model_validator

from versatune_ds.config.section import ExpandedText, PlainMapping, Section


class LoraConfig(Section):
    """Train adapters (LoRA, or DoRA) instead of the model's own weights. Needs the extra `lora`."""

    rank: int = Field(default=16, ge=1)
    """Rank of the adapters: a layer from D to E dimensions gets rank * (D + E) trained numbers. Raise it where the
    adapters cannot learn enough."""
    alpha: float = Field(default=32.0, gt=0)
    """Scale of the adapters: their output is multiplied by alpha / rank (by alpha / sqrt(rank) with `use_rslora`)."""
    dropout: float = Field(default=0.0, ge=0, lt=1)
    """Share of an adapter's inputs set to zero while training."""
    target_modules: tuple[str, ...] | None = None
    """Layers that get an adapter, by the end of their names (q_proj, v_proj). By default every linear layer except
    the head, which cannot have one: the fused loss uses its weight directly."""
    use_dora: bool = False
    """Train the weights' magnitudes apart from their directions (DoRA)."""
    use_rslora: bool = False
    """Scale by alpha / sqrt(rank), so that large ranks do not learn too slowly (rank-stabilised LoRA)."""

    @field_validator("target_modules", mode="before")
    @classmethod
    def _all_linear_is_the_default(cls, value: Any) -> Any:
        """Accept peft's `all-linear`, and one name without a list around it."""
        if isinstance(value, str):
            return None if value == "all-linear" else (value,)
        return value

    @field_validator("target_modules")
    @classmethod
    def _names_something(cls, value: tuple[str, ...] | None) -> tuple[str, ...] | None:
        """Check that there is at least one name and that none is empty."""
        if value is not None and not all(value or ("",)):
            raise ValueError("model.lora.target_modules: expected names such as [q_proj, v_proj], or leave it out")
        return value


AttentionName = Literal["auto", "varlen", "flash_attention_2", "flash_attention_3", "flex_attention", "sdpa", "eager"]
_HUB_KERNEL = re.compile(r"kernels-community/[\w.-]+(@[\w.-]+)?(:[\w.-]+)?")


class ModelConfig(Section):
    """The model to fine-tune, and its tokenizer."""

    name_or_path: ExpandedText | None = None
    """Model to fine-tune: a folder saved by transformers, or a Hub name. Give this, `model.gguf_file`, or
    `model.from_config`."""
    gguf_file: ExpandedText | None = None
    """Start from a GGUF file: its path, or its name in the folder or Hub name of `model.name_or_path`. It is converted
    once, to a folder in the cache, in bf16 if its matrices are quantised or bf16, else in fp32. Needs the extra
    `gguf`."""
    from_config: PlainMapping | None = None
    """Train from random weights: a transformers config as a mapping with `model_type` and sizes."""
    tokenizer: ExpandedText | None = None
    """Folder or Hub name of the tokenizer. By default the model's own; with `model.from_config`, one trained on the
    data."""
    tokenizer_vocab_size: int = Field(default=4096, ge=300)
    """Vocabulary size of a tokenizer trained on the data, in tokens."""
    trust_remote_code: bool = False
    """Run Python code that comes with the model. Set it only if the model needs it and you trust its author."""
    attention: AttentionName | str = "auto"
    """How attention is computed. `auto` takes the fastest that needs no mask and works here: on a GPU `varlen` (part of
    torch from 2.10 on; half precision), else flash-attention 3 or 2 where installed, else `flex_attention`, else
    `sdpa`; on a CPU `sdpa`. The log and `versatune check` report which, and why. A kernel of the Hub is given by its
    name: `kernels-community/flash-attn2`."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass: less memory, about a third more time. Set it when memory runs out."""
    compile: bool = False
    """Compile the decoder's layers with torch.compile: a minute or more at the first step, faster steps after it. Needs
    a C++ compiler, and Triton on a GPU. Not available with ZeRO-3, which gathers weights between operations."""
    fused_layers: Literal["auto", "liger", "none"] = "auto"
    """Norms, rotary embeddings and SwiGLU as Liger's fused kernels (extra `fused`), in Llama, Mistral, Qwen2 and Qwen3:
    fewer passes over the activations, losses the same within rounding. `auto` uses them on a GPU where they are
    installed, unless `model.compile` fuses the layers already."""
    lora: LoraConfig | None = None
    """Train adapters instead of the weights; `true` takes the defaults, as `model.lora={}` does, and `false` trains the
    weights, as null does."""
    load_in_4bit: bool = False
    """Keep the weights that adapters are trained beside in 4 bits (QLoRA): about half a byte a weight of every linear
    layer, NF4 with double quantisation; embeddings, head and norms stay in `train.precision`. Needs `model.lora`, the
    extra `qlora`, and ZeRO stage 0, 1 or 2."""
    freeze: tuple[str, ...] = ()
    """Parameters that are not trained: names with `*` and `?`, such as `model.embed_tokens.*` or `lm_head.weight`. A
    tied weight is one parameter under two names: freezing either freezes it."""

    @model_serializer(mode="wrap")
    def _without_unused_keys(self, serialise: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Leave later keys out where they are not used, so that files and digests of earlier versions stay valid."""
        unused = {"gguf_file": None, "load_in_4bit": False}
        return {key: value for key, value in serialise(self).items() if key not in unused or value != unused[key]}

    @field_validator("lora", mode="before")
    @classmethod
    def _is_on_or_off(cls, value: Any) -> Any:
        """Accept true for the defaults and false for none."""
        if isinstance(value, bool):
            return {} if value else None
        return value

    @field_validator("attention", mode="before")
    @classmethod
    def _is_known(cls, value: Any) -> Any:
        """Check that an implementation is one of ours, or named as a kernel of the Hub is."""
        known = get_args(AttentionName)
        if value not in known and not (isinstance(value, str) and _HUB_KERNEL.fullmatch(value)):
            raise ValueError(
                f"expected {', '.join(known)}, or a kernel of the Hub such as kernels-community/flash-attn2"
            )
        return value

    @model_validator(mode="after")
    def _has_one_origin(self) -> ModelConfig:
        if self.gguf_file is not None and self.from_config is not None:
            raise ValueError("model.gguf_file: its config comes with it; leave out model.from_config (=null)")
        if (self.name_or_path is None and self.gguf_file is None) == (self.from_config is None):
            found = "none" if self.from_config is None else "both; leave one out, as in model.from_config=null"
            raise ValueError(
                f"give exactly one of model.name_or_path (or model.gguf_file) and model.from_config; found {found}"
            )
        if self.from_config is not None and "model_type" not in self.from_config:
            raise ValueError("model.from_config: key 'model_type' is missing (for example: model_type: llama)")
        return self

    @model_validator(mode="after")
    def _fuses_once(self) -> ModelConfig:
        """Check that layers are fused in one way."""
        if self.compile and self.fused_layers == "liger":
            raise ValueError(
                "model.fused_layers: model.compile fuses the layers itself; leave one of the two out "
                "(model.compile=false)"
            )
        return self

    @model_validator(mode="after")
    def _freezes_once(self) -> ModelConfig:
        if self.lora is not None and self.freeze:
            raise ValueError(
                "model.freeze: model.lora freezes everything but the adapters; leave one of the two out "
                "(model.lora=null)"
            )
        return self

    @model_validator(mode="after")
    def _quantises_what_is_frozen(self) -> ModelConfig:
        """Check that only a saved model's frozen weights are to be in 4 bits."""
        if not self.load_in_4bit:
            return self
        if self.lora is None:
            raise ValueError(
                "model.load_in_4bit: weights in 4 bits cannot be trained; add model.lora=true, or leave it out"
            )
        if self.from_config is not None:
            raise ValueError("model.load_in_4bit: needs a saved model (model.name_or_path), not model.from_config")
        return self


def model_identity(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the keys of a model section that results depend on.

    How attention and layers are computed changes them within rounding only, and the defaults differ between versions. A
    GGUF file has become the folder in `name_or_path`.
    """
    return {key: value for key, value in values.items() if key not in ("attention", "fused_layers", "gguf_file")}

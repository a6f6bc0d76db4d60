"""Settings of model and adapters in other tools."""

from __future__ import annotations

from versatune_ds.config.tool_names.known_name import KnownName

MODEL_NAMES = (
    KnownName(
        keys=("model.name_or_path",),
        how="the same name or folder",
        example=("model.name_or_path=Qwen/Qwen2.5-7B",),
        transformers=("model_name_or_path", "pretrained_model_name_or_path"),
        axolotl=("base_model",),
        others=("model_name", "model_path", "model_id", "name_or_path"),
    ),
    KnownName(
        keys=("model.tokenizer",),
        how="the same name or folder; by default the model's own",
        example=("model.tokenizer=Qwen/Qwen2.5-7B",),
        transformers=("tokenizer_name", "tokenizer_name_or_path"),
        axolotl=("tokenizer_config",),
        others=("tokenizer_path",),
    ),
    KnownName(
        keys=("model.trust_remote_code",),
        example=("model.trust_remote_code=true",),
        transformers=("trust_remote_code",),
    ),
    KnownName(
        keys=("model.attention",),
        how="flash_attention_2, flash_attention_3, flex_attention, sdpa or eager; auto takes the fastest that works",
        example=("model.attention=flash_attention_2",),
        transformers=("attn_implementation",),
        llama_factory=("flash_attn",),
        axolotl=("flash_attention", "sdp_attention", "xformers_attention", "flex_attention", "eager_attention"),
        others=("use_flash_attn", "use_flash_attention", "use_flash_attention_2"),
    ),
    KnownName(
        keys=("model.gradient_checkpointing",),
        example=("model.gradient_checkpointing=true",),
        transformers=("gradient_checkpointing",),
        others=("activation_checkpointing",),
    ),
    KnownName(
        keys=("model.compile",), example=("model.compile=true",), transformers=("torch_compile",), others=("compile",)
    ),
    KnownName(
        keys=("model.fused_layers",),
        how="true is liger; auto uses it on a GPU where it is installed",
        example=("model.fused_layers=liger",),
        transformers=("use_liger_kernel", "use_liger"),
        llama_factory=("enable_liger_kernel",),
        axolotl=("liger_rope", "liger_rms_norm", "liger_glu_activation", "liger_swiglu"),
    ),
    KnownName(
        keys=("model.lora",),
        how="`model.lora=true` trains adapters with the defaults; without model.lora all weights are trained",
        example=("model.lora=true",),
        transformers=("use_peft", "peft_config"),
        llama_factory=("finetuning_type",),
        axolotl=("adapter",),
        others=("lora", "use_lora", "peft", "peft_type"),
    ),
    KnownName(
        keys=("model.lora.rank",),
        example=("model.lora.rank=16",),
        transformers=("lora_r",),
        llama_factory=("lora_rank",),
        others=("lora.r",),
    ),
    KnownName(
        keys=("model.lora.alpha",),
        example=("model.lora.alpha=32",),
        transformers=("lora_alpha",),
    ),
    KnownName(
        keys=("model.lora.dropout",),
        example=("model.lora.dropout=0.05",),
        transformers=("lora_dropout",),
    ),
    KnownName(
        keys=("model.lora.target_modules",),
        how="the same names as a list; all linear layers are the default",
        example=("model.lora.target_modules=[q_proj,v_proj]",),
        transformers=("lora_target_modules",),
        llama_factory=("lora_target",),
        axolotl=("lora_target_linear",),
        others=("target_modules",),
    ),
    KnownName(
        keys=("model.lora.use_dora",),
        example=("model.lora.use_dora=true",),
        transformers=("use_dora",),
        axolotl=("peft_use_dora",),
    ),
    KnownName(
        keys=("model.lora.use_rslora",),
        example=("model.lora.use_rslora=true",),
        transformers=("use_rslora",),
        axolotl=("peft_use_rslora",),
    ),
    KnownName(
        how="only adapters are trained beside frozen weights; without model.lora all but model.freeze is trained",
        transformers=("lora_modules_to_save", "modules_to_save"),
        llama_factory=("additional_target",),
    ),
    KnownName(
        keys=("model.load_in_4bit",),
        how="true keeps the weights beside model.lora in 4 bits, always as NF4 with double quantisation, computing in "
        "train.precision",
        example=("model.load_in_4bit=true", "model.lora=true", "model.name_or_path=Qwen/Qwen2.5-7B"),
        transformers=(
            "load_in_4bit",
            "bnb_4bit_quant_type",
            "bnb_4bit_compute_dtype",
            "quantization_config",
            "use_bnb_nested_quant",
        ),
        llama_factory=("quantization_bit", "quantization_method", "double_quantization"),
        others=("qlora", "bnb_4bit_use_double_quant"),
    ),
    KnownName(
        how="weights are loaded in train.precision, or in 4 bits (model.load_in_4bit=true, with model.lora)",
        transformers=("load_in_8bit",),
    ),
    KnownName(
        keys=("model.freeze",),
        how="the parameters that are not trained, by name with * and ?",
        example=("model.freeze=[model.embed_tokens.*]",),
        llama_factory=("freeze_trainable_layers", "freeze_trainable_modules"),
        axolotl=("unfrozen_parameters",),
        others=("freeze_layers",),
    ),
    KnownName(how="it has not been measured here, and there is no key for it", transformers=("neftune_noise_alpha",)),
    KnownName(
        how="the loss is plain cross entropy, so that losses compare with references",
        transformers=("label_smoothing_factor",),
    ),
)

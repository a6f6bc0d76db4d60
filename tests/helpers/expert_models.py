"""Keys of small mixtures of experts, by model type: four experts, of which a token uses two."""

EXPERTS = {"num_experts_per_tok": 2, "moe_intermediate_size": 16}
DEEPSEEK = {
    "n_routed_experts": 4, "n_shared_experts": 1, "first_k_dense_replace": 1, "n_group": 1, "topk_group": 1,
    "q_lora_rank": 16, "kv_lora_rank": 16, "qk_rope_head_dim": 8, "qk_nope_head_dim": 8, "v_head_dim": 8,
    "head_dim": 8, "num_hidden_layers": 3, "num_key_value_heads": 4, **EXPERTS,
}  # fmt: skip
MODELS = {
    "mixtral": {"num_local_experts": 4, "num_experts_per_tok": 2},
    "qwen2_moe": {"num_experts": 4, "shared_expert_intermediate_size": 16, **EXPERTS},
    "qwen3_moe": {"num_experts": 4, **EXPERTS},
    "deepseek_v2": DEEPSEEK,
    "deepseek_v3": DEEPSEEK,
}

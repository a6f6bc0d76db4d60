"""torch's varlen_attn in plain PyTorch, and a machine with a GPU, so that CPUs can test what calls it."""

from __future__ import annotations

import itertools

import torch
from torch.nn import functional

from versatune_ds.model.attention_choice import Machine

PARAMETERS = frozenset({"window_size", "scale", "enable_gqa"})
H100 = Machine(device_type="cuda", precision="bf16", capability=(9, 0), varlen=PARAMETERS)


def varlen_attn(
    query, key, value, cu_seq_q, cu_seq_k, max_q, max_k, *, scale=None, window_size=(-1, -1), enable_gqa=False
):
    """Attend within each segment: [N,H,D], bounds int32 [S+1], a window of (left, right) neighbours; as torch 2.13."""
    _check(query, key, value, cu_seq_q, cu_seq_k, max_q, max_k, enable_gqa=enable_gqa)
    settings = {"scale": scale, "window_size": window_size, "enable_gqa": enable_gqa}
    segments = [slice(begin, end) for begin, end in itertools.pairwise(cu_seq_q.tolist())]
    return torch.cat([_attend(query[part], key[part], value[part], **settings) for part in segments])


def varlen_attn_of_torch_2_10(query, key, value, cu_seq_q, cu_seq_k, max_q, max_k, is_causal=False, return_aux=None):
    """The same with the parameters of torch 2.10, which takes grouped heads as they are."""
    assert return_aux is None
    window = (-1, 0) if is_causal else (-1, -1)
    return varlen_attn(query, key, value, cu_seq_q, cu_seq_k, max_q, max_k, window_size=window, enable_gqa=True)


def _check(query, key, value, cu_seq_q, cu_seq_k, max_q, max_k, *, enable_gqa):
    """Check what the kernel would refuse, or read beyond the end of."""
    assert {part.dim() for part in (query, key, value)} == {3}
    assert query.shape[0] == key.shape[0] == value.shape[0] == int(cu_seq_q[-1])
    assert query.shape[2] == key.shape[2] == value.shape[2]
    assert query.shape[1] == key.shape[1] or (enable_gqa and query.shape[1] % key.shape[1] == 0)
    assert cu_seq_q is cu_seq_k
    assert (cu_seq_q.dtype, int(cu_seq_q[0])) == (torch.int32, 0)
    assert isinstance(max_q, int)
    assert max_q == max_k >= int(cu_seq_q.diff().max())


def _attend(query, key, value, *, scale, window_size, enable_gqa):
    """Attend within one segment of n positions."""
    n, (left, right) = len(query), window_size
    distance = torch.arange(n)[:, None] - torch.arange(n)[None, :]  # of a key before a query
    is_seen = torch.ones(n, n, dtype=torch.bool)
    if left >= 0:
        is_seen &= distance <= left
    if right >= 0:
        is_seen &= -distance <= right
    settings = {"attn_mask": is_seen, "scale": scale, "enable_gqa": enable_gqa}
    heads_first = (part.transpose(0, 1)[None] for part in (query, key, value))
    return functional.scaled_dot_product_attention(*heads_first, **settings)[0].transpose(0, 1)


def flash_attn_varlen_func(
    q, k, v, *, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k, causal, softmax_scale, window_size=(-1, -1),
    dropout_p=0.0, softcap=None, deterministic=False,
):  # fmt: skip
    """Attend within each segment as flash-attention 2 does: `causal` closes a window to the right."""
    assert causal
    assert dropout_p == 0.0
    assert softcap is None
    bounds = (cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k)
    return varlen_attn(q, k, v, *bounds, scale=softmax_scale, window_size=(window_size[0], 0), enable_gqa=True)


def install_flash(patch):
    """Put a stand-in in the place of flash-attention 2; models then pass through transformers' own code for it."""
    from transformers import modeling_flash_attention_utils as flash

    prepare = flash._lazy_define_process_function(flash_attn_varlen_func)
    functions = (None, flash_attn_varlen_func, None, None, None), (prepare, dict)
    patch.setattr(flash, "lazy_import_flash_attention", lambda implementation=None, *_, **__: functions)


def install(patch, *, kernel=varlen_attn, machine=H100):
    """Put the stand-in in torch's place, and let models be built for a machine that has it."""
    patch.setattr("torch.nn.attention.varlen.varlen_attn", kernel)
    patch.setattr("versatune_ds.model.build.machine_here", lambda precision: machine)
    patch.setattr("versatune_ds.training.model_engine.machine_here", lambda precision: machine)
    start_checks = "versatune_ds.training.start_checks.processes"
    patch.setattr(f"{start_checks}.check_attention_device", lambda wanted, *, device_type: None)

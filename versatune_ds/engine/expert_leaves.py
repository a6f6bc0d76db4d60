"""Let ZeRO-3 gather all experts of a layer together where a model keeps each in a module of its own.

ZeRO-3 gathers the weights of a module when it is called, on all ranks at once. An expert that no token of this rank is
sent to is not called here, but perhaps on another rank: the ranks then gather different weights, and fail or wait for
each other. Marked as a leaf, the layer is gathered as a whole, and experts without tokens get a gradient of zeros.

transformers 5 stores the experts of a layer as one tensor, which is always used (Mixtral, Qwen2-MoE, Qwen3-MoE,
DeepSeek-V2 and V3, ...): nothing is marked there. It concerns models with code of their own.
"""

from __future__ import annotations

from deepspeed.utils.z3_leaf_module import set_z3_leaf_module
from torch import nn


def mark_expert_layers(model: nn.Module) -> int:
    """Mark the modules that have a list of experts as leaves of ZeRO-3; return how many. No effect below stage 3."""
    layers = [module for module in model.modules() if any(_is_expert_list(*child) for child in module.named_children())]
    for layer in layers:
        set_z3_leaf_module(layer, True)
    return len(layers)


def _is_expert_list(name: str, module: nn.Module) -> bool:
    return "expert" in name and isinstance(module, nn.ModuleList) and len(module) > 1

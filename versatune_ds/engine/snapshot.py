"""Copy what a checkpoint file will contain into the host's memory, so that it can be written while training continues.

Tensors that share memory share it in the copy too (a tied head, the pieces of a flat partition), as torch.save expects:
it writes memory that is shared once.
"""

from __future__ import annotations

import copy
from typing import Any

import torch

_COPIED_CLASSES = (torch.Tensor, torch.nn.Parameter)


def take_snapshot(values: Any) -> Any:
    """Return a copy of nested dicts, lists, tuples, tensors and other objects that later steps do not change.

    The copies of a GPU's tensors are in pinned memory and still under way when this returns: call
    `torch.cuda.synchronize` before the tensors change.

    Raises:
        RuntimeError: If the memory does not suffice.
    """
    return _copy(values, {})


def _copy(values: Any, copies: dict[int, tuple[torch.UntypedStorage, torch.UntypedStorage]]) -> Any:
    """Return a copy; `copies` has the storages copied so far by address of the source, which it keeps alive."""
    if type(values) in _COPIED_CLASSES and values.layout == torch.strided:
        return _copy_tensor(values, copies)
    if isinstance(values, dict):
        copied = copy.copy(values)  # a module's state has attributes besides its items
        for key, value in values.items():
            copied[key] = _copy(value, copies)
        return copied
    if type(values) in (list, tuple):
        return type(values)(_copy(value, copies) for value in values)
    return copy.deepcopy(values)  # a loss scaler changes in later steps


def _copy_tensor(
    tensor: torch.Tensor, copies: dict[int, tuple[torch.UntypedStorage, torch.UntypedStorage]]
) -> torch.Tensor:
    """Return a tensor of the same shape and strides on the copy of its memory."""
    source = tensor.untyped_storage()
    if source._cdata not in copies:
        copies[source._cdata] = (source, _copy_storage(source))
    _, storage = copies[source._cdata]
    copied = torch.empty(0, dtype=tensor.dtype)
    copied.set_(storage, tensor.storage_offset(), tensor.size(), tensor.stride())
    if isinstance(tensor, torch.nn.Parameter):
        return torch.nn.Parameter(copied, requires_grad=tensor.requires_grad)
    return copied.requires_grad_(tensor.requires_grad)


def _copy_storage(source: torch.UntypedStorage) -> torch.UntypedStorage:
    """Return a copy in the host's memory, pinned where the source is on a GPU, which is faster to copy to."""
    is_on_gpu = source.device.type == "cuda"
    copied = torch.empty(source.nbytes(), dtype=torch.uint8, pin_memory=is_on_gpu).untyped_storage()
    copied.copy_(source, non_blocking=is_on_gpu)
    return copied

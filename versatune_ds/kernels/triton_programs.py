"""The Triton programs behind `triton_kernels`, which imports this module on first use: Triton takes a second to load.

Triton compiles what it finds in a module's global names, so the programs cannot be defined inside a function.

Shape legend: **N** tokens, **V** vocabulary.
"""
# ruff: noqa: ANN001, ANN201 - arguments and results are pointers and scalars of Triton's own types

import triton
import triton.language as tl


@triton.jit
def x_of(logits, softcap, is_inside):
    """Return soft-capped logits in float32, -inf outside the row; tanh(z) = 2 * sigmoid(2 z) - 1."""
    x = logits.to(tl.float32)
    if softcap > 0.0:
        x = softcap * (2.0 * tl.sigmoid(2.0 * x / softcap) - 1.0)
    return tl.where(is_inside, x, float("-inf"))


@triton.jit
def loss_kernel(
    logits, row_stride, labels, nll_out, objective_out, normalizers_out,
    vocabulary, ignore_index, z_loss, softcap, label_smoothing, BLOCK: tl.constexpr,
):  # fmt: skip
    """Reduce one row: maximum and sum of exponentials, rescaled whenever the maximum grows."""
    row = tl.program_id(0).to(tl.int64)
    label = tl.load(labels + row)
    if label == ignore_index:
        tl.store(nll_out + row, 0.0)
        tl.store(objective_out + row, 0.0)
        tl.store(normalizers_out + 2 * row, 0.0)
        tl.store(normalizers_out + 2 * row + 1, 0.0)
        return
    largest, total, sum_x = float("-inf"), 0.0, 0.0
    for start in range(0, vocabulary, BLOCK):
        column = start + tl.arange(0, BLOCK)
        is_inside = column < vocabulary
        x = x_of(tl.load(logits + row * row_stride + column, mask=is_inside, other=0.0), softcap, is_inside)
        grown = tl.maximum(largest, tl.max(x, 0))
        base = tl.where(grown == float("-inf"), 0.0, grown)
        total = total * tl.exp(largest - base) + tl.sum(tl.exp(x - base), 0)
        sum_x += tl.sum(tl.where(is_inside, x, 0.0), 0)
        largest = grown
    is_label = (label >= 0) & (label < vocabulary)
    label_logit = tl.load(logits + row * row_stride + tl.where(is_label, label, 0))
    log_sum = tl.log(total)
    nll = tl.where(is_label, (largest - x_of(label_logit, softcap, True)) + log_sum, float("nan"))
    lse = largest + log_sum
    objective = (1.0 - label_smoothing) * nll + label_smoothing * (lse - sum_x / vocabulary) + z_loss * lse * lse
    tl.store(nll_out + row, nll)
    tl.store(objective_out + row, objective)
    tl.store(normalizers_out + 2 * row, largest)
    tl.store(normalizers_out + 2 * row + 1, log_sum)


@triton.jit
def gradient_kernel(
    logits, row_stride, grad, grad_stride, labels, normalizers, scales,
    vocabulary, z_loss, softcap, label_smoothing, BLOCK: tl.constexpr,
):  # fmt: skip
    """Write the gradient of one block of one row; a scale of 0 gives zeros, whatever the logits are."""
    row = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    is_inside = column < vocabulary
    scale = tl.load(scales + row)
    largest, log_sum = tl.load(normalizers + 2 * row), tl.load(normalizers + 2 * row + 1)
    x = x_of(tl.load(logits + row * row_stride + column, mask=is_inside, other=0.0), softcap, is_inside)
    result = tl.exp(x - largest - log_sum) * (1.0 + 2.0 * z_loss * (largest + log_sum))
    result -= label_smoothing / vocabulary
    result += tl.where(column == tl.load(labels + row), label_smoothing - 1.0, 0.0)
    if softcap > 0.0:
        result *= 1.0 - (x / softcap) * (x / softcap)
    result = tl.where(scale == 0.0, 0.0, result * scale)
    tl.store(grad + row * grad_stride + column, result.to(grad.dtype.element_ty), mask=is_inside)

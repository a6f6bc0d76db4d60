"""Triton's kernels against float64, interpreted on the CPU, and compiled for GPUs that are not here.

Triton comes with PyTorch's CUDA wheels and is no dependency: on a CPU these tests run where it was installed by hand
(`pip install triton`).
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton", reason="Triton is not installed (pip install triton)")
pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[2]
INTERPRETED = """
import torch
from tests.kernels.exact_loss import exact_gradient, make_case
from versatune_ds.kernels import LossSettings, triton_kernels

everything = LossSettings(z_loss=1e-3, softcap=5.0, label_smoothing=0.1)
for dtype, tolerance in {torch.float32: 2e-6, torch.bfloat16: 4e-3, torch.float16: 1e-3}.items():
    for vocabulary in (7, 101, 9000):
        for settings in (LossSettings(), everything):
            case = make_case(9, vocabulary, dtype=dtype)
            case.logits_NV[case.labels_N == -100] = float("nan")
            exact, exact_grad_NV = exact_gradient(case, settings)
            exact_grad_NV[case.labels_N == -100] = 0.0
            ids = (case.labels_N, case.domain_ids_N, case.loss_weights_K)
            *_, normalizers_N2, nll_N = triton_kernels.domain_ce(case.logits_NV, *ids, *settings.as_arguments())
            kept_NV = triton_kernels.domain_ce_backward(
                case.logits_NV, *ids, normalizers_N2, torch.tensor(2.0), *settings.as_arguments()
            )
            loss, bins_K5, _ = triton_kernels.domain_ce_gradient_(case.logits_NV, *ids, *settings.as_arguments())
            torch.testing.assert_close(nll_N.double(), exact.nll_N.nan_to_num(0.0), rtol=1e-5, atol=5e-6)
            assert torch.equal(bins_K5[:, 3], exact.num_loss_tokens_K)
            close = {"rtol": tolerance, "atol": tolerance * 0.2}
            torch.testing.assert_close(case.logits_NV.double(), exact_grad_NV, **close)
            torch.testing.assert_close(kept_NV.double() / 2, exact_grad_NV, **close)
print("agree")
"""
COMPILED = """
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from versatune_ds.kernels import triton_programs

POINTERS = {"logits": "*bf16", "grad": "*bf16", "labels": "*i64"}
SCALARS = {"row_stride": "i64", "grad_stride": "i64", "vocabulary": "i32", "ignore_index": "i32", "BLOCK": "constexpr"}
FLOATS = ("z_loss", "softcap", "label_smoothing")
for program in (triton_programs.loss_kernel, triton_programs.gradient_kernel):
    for capability in (80, 90, 100):
        types = {name: "fp32" if name in FLOATS else "*fp32" for name in program.arg_names} | {
            name: kind for name, kind in (POINTERS | SCALARS).items() if name in program.arg_names
        }
        source = ASTSource(program, types, constexprs={"BLOCK": 4096})
        assert triton.compile(source, target=GPUTarget("cuda", capability, 32)).asm["cubin"]
print("compiled")
"""


def output_of(program: str, **environment: str) -> str:
    """Run a program in a process of its own: whether Triton interprets is decided when it is imported."""
    everything = {**os.environ, **environment, "PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path])}
    done = subprocess.run([sys.executable, "-c", program], env=everything, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_loss_statistics_and_gradients_agree_with_float64() -> None:
    assert "agree" in output_of(INTERPRETED, TRITON_INTERPRET="1")


def test_the_programs_compile_for_ampere_hopper_and_blackwell(tmp_path: Path) -> None:
    assert "compiled" in output_of(COMPILED, TRITON_CACHE_DIR=str(tmp_path))

"""The CUDA kernels against float64, run on the CPU by an emulator of threads, clusters, barriers and bulk copies."""

from __future__ import annotations

import ctypes
import shutil

import pytest
import torch
from hypothesis import given
from hypothesis import settings as examples
from hypothesis import strategies as st

from tests.kernels.emulated_gpu import EmulatedDevice, KernelResult, LaunchError, compile_kernels, run_kernel
from tests.kernels.exact_loss import Case, exact_gradient, make_case
from versatune_ds.kernels import LossSettings
from versatune_ds.kernels.kernel_choice import KERNELS

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(shutil.which("c++") is None, reason="no C++ compiler on this machine"),
]
PLAIN = LossSettings()
EVERYTHING = LossSettings(z_loss=1e-3, softcap=5.0, label_smoothing=0.1)
TOLERANCE = {torch.float32: 2e-6, torch.bfloat16: 4e-3, torch.float16: 1e-3}
RINGS = [name for name in KERNELS if name.startswith("ring")]
ALIGNED = 520  # 65 vectors of bfloat16: shares of a cluster are unequal


@pytest.fixture(scope="module")
def kernels() -> ctypes.CDLL:
    return compile_kernels()


def assert_exact(result: KernelResult, case: Case, settings: LossSettings = PLAIN) -> None:
    exact, exact_grad_NV = exact_gradient(case, settings)
    torch.testing.assert_close(result.loss.double(), exact.loss.detach(), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(result.token_losses_N.double(), exact.nll_N, rtol=1e-5, atol=5e-6)
    assert torch.equal(result.num_loss_tokens_K, exact.num_loss_tokens_K)
    tolerance = TOLERANCE[case.logits_NV.dtype]
    torch.testing.assert_close(result.grad_NV.double(), exact_grad_NV, rtol=tolerance, atol=tolerance * 0.1)


@pytest.mark.parametrize("settings", [PLAIN, EVERYTHING], ids=["plain", "everything"])
@pytest.mark.parametrize("dtype", list(TOLERANCE), ids=str)
@pytest.mark.parametrize("kernel", KERNELS)
def test_loss_statistics_and_gradient_agree_with_float64(
    kernels: ctypes.CDLL, kernel: str, dtype: torch.dtype, settings: LossSettings
) -> None:
    case = make_case(7, ALIGNED, dtype=dtype)
    assert_exact(run_kernel(kernels, kernel, case, settings, overwrite=True), case, settings)


@pytest.mark.parametrize("kernel", KERNELS[1:])
def test_a_row_longer_than_one_trip_of_all_threads_is_read_to_its_end(kernels: ctypes.CDLL, kernel: str) -> None:
    case = make_case(4, 16_384 + 64, dtype=torch.bfloat16)
    assert_exact(run_kernel(kernels, kernel, case), case)


@pytest.mark.parametrize("kernel", RINGS)
def test_more_rows_than_stages_go_through_the_ring(kernels: ctypes.CDLL, kernel: str) -> None:
    case = make_case(23, 64, dtype=torch.bfloat16)
    assert_exact(run_kernel(kernels, kernel, case, device=EmulatedDevice(num_multiprocessors=1)), case)


@given(
    kernel=st.sampled_from(KERNELS[1:]), seed=st.integers(0, 2**31), num_rows=st.integers(1, 9),
    num_vectors=st.integers(1, 70), masked=st.sampled_from([0.0, 0.4, 1.0]), multiprocessors=st.integers(1, 3),
)  # fmt: skip
@examples(max_examples=40, deadline=None)
def test_any_order_of_threads_and_copies_gives_the_same_bits(
    kernels: ctypes.CDLL, kernel: str, seed: int, num_rows: int, num_vectors: int, masked: float, multiprocessors: int
) -> None:
    case = make_case(num_rows, 8 * num_vectors, dtype=torch.bfloat16, masked=masked)
    one = run_kernel(kernels, kernel, case, overwrite=True, device=EmulatedDevice(num_multiprocessors=1))
    device = EmulatedDevice(seed=seed, num_multiprocessors=multiprocessors)
    other = run_kernel(kernels, kernel, case, overwrite=True, device=device)
    assert_exact(one, case)
    for name in ("loss", "bins_K5", "normalizers_N2", "token_losses_N", "grad_NV"):
        assert torch.equal(getattr(one, name), getattr(other, name)), name


@pytest.mark.parametrize("kernel", RINGS)
def test_a_ring_of_two_stages_is_enough(kernels: ctypes.CDLL, kernel: str) -> None:
    case = make_case(9, 8192, dtype=torch.bfloat16)
    slice_bytes = 16_384 // int(kernel.removeprefix("ring_"))
    device = EmulatedDevice(num_multiprocessors=1, shared_bytes=8192 + 256 + 2 * slice_bytes)
    assert_exact(run_kernel(kernels, kernel, case, device=device), case)


def test_a_row_that_does_not_fit_is_refused_and_the_likely_kernel_is_another(kernels: ctypes.CDLL) -> None:
    case, device = make_case(3, 8192, dtype=torch.bfloat16), EmulatedDevice(shared_bytes=8192 + 256 + 16_384)
    with pytest.raises(LaunchError, match="two slices of a row do not fit into a block's shared memory"):
        run_kernel(kernels, "ring_1", case, device=device)
    assert_exact(run_kernel(kernels, "auto", case, device=device), case)


@pytest.mark.parametrize("vocabulary", [1, 7, 1003])
@pytest.mark.parametrize("kernel", KERNELS)
def test_rows_that_are_not_whole_vectors_take_the_two_pass_kernel(
    kernels: ctypes.CDLL, kernel: str, vocabulary: int
) -> None:
    case = make_case(5, vocabulary, dtype=torch.bfloat16)
    result, two_pass = run_kernel(kernels, kernel, case), run_kernel(kernels, "two_pass", case)
    assert_exact(result, case)
    assert torch.equal(result.normalizers_N2, two_pass.normalizers_N2)


@pytest.mark.parametrize("kernel", KERNELS[1:])
def test_a_row_of_one_vector_leaves_most_blocks_of_a_cluster_without_a_share(kernels: ctypes.CDLL, kernel: str) -> None:
    case = make_case(5, 8, dtype=torch.bfloat16)
    assert_exact(run_kernel(kernels, kernel, case), case)


@pytest.mark.parametrize("kernel", KERNELS[1:])
def test_masked_rows_are_exactly_zero_even_when_poisoned(kernels: ctypes.CDLL, kernel: str) -> None:
    case = make_case(12, ALIGNED, dtype=torch.bfloat16, masked=0.5)
    is_masked_N = case.labels_N == -100
    case.logits_NV[is_masked_N] = float("nan")
    case.domain_ids_N[is_masked_N] = -5
    result = run_kernel(kernels, kernel, case, overwrite=True)
    assert result.loss.isfinite()
    assert (result.grad_NV[is_masked_N] == 0).all()
    assert (result.token_losses_N[is_masked_N] == 0).all()
    assert (result.normalizers_N2[is_masked_N] == 0).all()


@pytest.mark.parametrize("kernel", KERNELS[1:])
def test_a_domain_of_weight_zero_gets_a_gradient_of_exactly_zero(kernels: ctypes.CDLL, kernel: str) -> None:
    case = make_case(6, ALIGNED, dtype=torch.bfloat16, masked=0.0, num_domains=1)
    case.loss_weights_K[0] = 0.0
    result = run_kernel(kernels, kernel, case)
    assert (result.grad_NV == 0).all()
    assert result.loss == 0.0


@pytest.mark.parametrize("kernel", KERNELS[1:])
@pytest.mark.parametrize(("label", "domain_id"), [(ALIGNED, 0), (-3, 0), (1, 99), (1, -1)])
def test_impossible_ids_make_the_loss_nan_and_write_nothing_out_of_bounds(
    kernels: ctypes.CDLL, kernel: str, label: int, domain_id: int
) -> None:
    case = make_case(4, ALIGNED, masked=0.0)
    case.labels_N[2], case.domain_ids_N[2] = label, domain_id
    result = run_kernel(kernels, kernel, case)
    assert result.loss.isnan()
    assert result.grad_NV[2].isnan().all()
    assert result.grad_NV[[0, 1, 3]].isfinite().all()


@pytest.mark.parametrize("num_domains", [1, 40, 600])
@pytest.mark.parametrize("kernel", KERNELS[1:])
def test_every_domain_is_counted_with_bins_in_shared_or_in_global_memory(
    kernels: ctypes.CDLL, kernel: str, num_domains: int
) -> None:
    case = make_case(30, 64, num_domains=num_domains)
    assert_exact(run_kernel(kernels, kernel, case), case)


@pytest.mark.parametrize("kernel", KERNELS[1:])
def test_without_a_gradient_only_the_loss_is_written(kernels: ctypes.CDLL, kernel: str) -> None:
    case = make_case(9, ALIGNED, dtype=torch.bfloat16)
    evaluated = run_kernel(kernels, kernel, case, with_gradient=False)
    trained = run_kernel(kernels, kernel, case)
    assert evaluated.grad_NV.isnan().all()
    assert torch.equal(evaluated.normalizers_N2, trained.normalizers_N2)
    assert torch.equal(evaluated.bins_K5, trained.bins_K5)


@pytest.mark.parametrize("kernel", KERNELS[1:])
@pytest.mark.parametrize("vocabulary", [1000, 1001])
def test_memory_around_the_logits_is_neither_read_nor_written(
    kernels: ctypes.CDLL, kernel: str, vocabulary: int
) -> None:
    case = make_case(5, vocabulary, dtype=torch.bfloat16, masked=0.2)
    padded = torch.full((7, vocabulary + 24), float("nan"), dtype=torch.bfloat16)
    inside_NV = padded[1:6, 8 : 8 + vocabulary]
    inside_NV.copy_(case.logits_NV)
    result = run_kernel(kernels, kernel, case, logits_NV=inside_NV, overwrite=True)
    assert_exact(result, case)
    inside_NV.fill_(float("nan"))
    assert padded.isnan().all()


def test_code_for_an_older_architecture_takes_the_two_pass_kernel_and_no_empty_one(kernels: ctypes.CDLL) -> None:
    case, device = make_case(5, ALIGNED), EmulatedDevice(code_version=80)
    assert_exact(run_kernel(kernels, "auto", case, device=device), case)
    with pytest.raises(LaunchError, match="not compiled for sm_90"):
        run_kernel(kernels, "ring_2", case, device=device)


@pytest.mark.parametrize(
    ("broken", "found"),
    [
        (("wait(&shared.is_full[stage], parity);", ""), "loss"),
        (("wait(has_parts, num_exchanged / 2 % 2);", ""), "loss"),
        (("if (threadIdx.x % 32 == 0) arrive(&shared.is_empty[stage]);", ""), "deadlock"),
        (("init_barrier(&shared.is_full[stage], 1);", ""), "a barrier is used that was not initialised"),
        (("init_barrier(&shared.is_empty[stage], kGroupWarps);", "init_barrier(&shared.is_empty[stage], 1);"), "loss"),
    ],
    ids=["no wait for the copy", "no wait for the parts", "stage never freed", "no barrier", "stage freed too early"],
)
def test_the_emulator_finds_a_ring_that_was_broken_on_purpose(broken: tuple[str, str], found: str) -> None:
    kernels, case = compile_kernels(broken), make_case(23, 2048, dtype=torch.bfloat16, masked=0.0)
    device = EmulatedDevice(num_multiprocessors=1, shared_bytes=8192 + 256 + 2 * 2048)
    if found == "loss":
        with pytest.raises((AssertionError, LaunchError)):
            assert_exact(run_kernel(kernels, "ring_2", case, overwrite=True, device=device), case)
        return
    with pytest.raises(LaunchError, match=found):
        run_kernel(kernels, "ring_2", case, device=device)

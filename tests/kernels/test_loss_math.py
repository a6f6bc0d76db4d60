"""The algorithm of the CUDA kernels, run on the CPU through the header both share."""

from __future__ import annotations

import ctypes
import math
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from versatune_ds.kernels import build_spec, fixed_point

COMPILER = shutil.which("c++")
pytestmark = pytest.mark.skipif(COMPILER is None, reason="no C++ compiler on this machine")


@pytest.fixture(scope="module")
def probe(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    library = tmp_path_factory.mktemp("probe") / "probe.so"
    source = Path(__file__).with_name("loss_math_probe.cpp")
    command = [
        COMPILER,
        "-std=c++17",
        "-O1",
        "-shared",
        "-fPIC",
        f"-I{build_spec.CSRC}",
        str(source),
        "-o",
        str(library),
    ]
    subprocess.run(command, check=True)
    loaded = ctypes.CDLL(str(library))
    loaded.probe_cluster_row.restype = ctypes.c_float
    return loaded


def as_pointer(values: np.ndarray) -> ctypes.c_void_p:
    return values.ctypes.data_as(ctypes.c_void_p)


def cluster_row(
    probe: ctypes.CDLL, x_V: np.ndarray, *, per_vector: int, threads: int, vectors: int, num_ctas: int
) -> tuple[float, np.ndarray]:
    visits_V = np.zeros(len(x_V), dtype=np.int32)
    lse = probe.probe_cluster_row(
        as_pointer(x_V), len(x_V), per_vector, threads, vectors, num_ctas, as_pointer(visits_V)
    )
    return lse, visits_V


@given(
    vocabulary=st.integers(1, 4000),
    per_vector=st.sampled_from([4, 8]),
    vectors=st.sampled_from([4, 8]),
    offset=st.sampled_from([0.0, 1000.0]),
    seed=st.integers(0, 99),
)
def test_the_chosen_cluster_reads_every_element_once_and_its_merge_gives_logsumexp(
    probe: ctypes.CDLL, vocabulary: int, per_vector: int, vectors: int, offset: float, seed: int
) -> None:
    threads = 32
    num_vectors = -(-vocabulary // per_vector)
    num_ctas = probe.probe_cluster_size(num_vectors, threads, vectors)
    if num_ctas == 0:
        assert num_vectors > 8 * threads * vectors
        return
    assert num_ctas in (1, 2, 4, 8)
    assert num_ctas == 1 or num_vectors > num_ctas // 2 * threads * vectors
    x_V = (np.random.default_rng(seed).normal(size=vocabulary) * 5 + offset).astype(np.float32)
    x_V[:: max(2, seed)] = -np.inf
    x_V[-1] = offset
    lse, visits_V = cluster_row(probe, x_V, per_vector=per_vector, threads=threads, vectors=vectors, num_ctas=num_ctas)
    assert (visits_V == 1).all()
    assert lse == pytest.approx(torch.tensor(x_V).double().logsumexp(0).item(), rel=1e-6, abs=1e-5)


@pytest.mark.parametrize(
    ("vocabulary", "element_bytes", "few", "many"),
    [(32000, 2, 2, 1), (128256, 2, 8, 4), (151936, 2, 0, 8), (262144, 2, 0, 8), (128256, 4, 0, 8), (300000, 2, 0, 0)],
)
def test_usual_vocabularies_get_the_clusters_that_the_notes_state(
    probe: ctypes.CDLL, vocabulary: int, element_bytes: int, few: int, many: int
) -> None:
    num_vectors = -(-vocabulary // (16 // element_bytes))
    assert probe.probe_cluster_size(num_vectors, 512, 4) == few
    assert probe.probe_cluster_size(num_vectors, 512, 8) == many


def token(probe: ctypes.CDLL, parts: list[tuple[float, float]], x_label: float, **settings: float) -> tuple:
    values, out, bins = np.array(parts, dtype=np.float32), np.zeros(3, dtype=np.float32), np.zeros(5, dtype=np.int64)
    probe.probe_token(
        as_pointer(values), len(parts), ctypes.c_float(x_label), ctypes.c_float(settings.get("sum_x", 0.0)),
        ctypes.c_int64(4), ctypes.c_float(settings.get("z_loss", 0.0)),
        ctypes.c_float(settings.get("label_smoothing", 0.0)), as_pointer(out), as_pointer(bins),
    )  # fmt: skip
    return out.tolist(), bins.tolist()


def test_the_loss_of_a_token_equals_that_of_four_logits_worked_out_by_hand(probe: ctypes.CDLL) -> None:
    # x = (0, 0, 0, ln 5): sum of exp = 8; as parts (0: 3) and (ln 5: 1). Label 3: p = 5/8.
    ln5 = math.log(5.0)
    (lse, nll, objective), bins = token(
        probe, [(0.0, 3.0), (ln5, 1.0)], ln5, sum_x=ln5, z_loss=0.5, label_smoothing=0.2
    )
    assert lse == pytest.approx(math.log(8.0), rel=1e-6)
    assert nll == pytest.approx(math.log(8 / 5), rel=1e-6)
    smooth = math.log(8.0) - ln5 / 4
    expected = 0.8 * math.log(8 / 5) + 0.2 * smooth + 0.5 * math.log(8.0) ** 2
    assert objective == pytest.approx(expected, rel=1e-6)
    assert bins[fixed_point.NLL] == round(nll * 2**24)
    assert bins[fixed_point.NLL_SQ] == round(nll * nll * 2**20)
    assert bins[3:] == [1, 0]


def test_merging_is_symmetric_bit_for_bit_and_ignores_empty_parts(probe: ctypes.CDLL) -> None:
    a, b, empty = (1.5, 2.7), (-3.25, 41.3), (-math.inf, 0.0)
    assert token(probe, [a, b], 1.0) == token(probe, [b, a], 1.0)
    assert token(probe, [empty, a, empty, b, empty], 1.0) == token(probe, [a, b], 1.0)


@pytest.mark.parametrize("x_label", [math.nan, math.inf, -40000.0])
def test_a_token_without_a_finite_loss_is_counted_as_invalid(probe: ctypes.CDLL, x_label: float) -> None:
    _, bins = token(probe, [(0.0, 1.0)], x_label)
    assert bins == [0, 0, 0, 1, 1]


def test_constants_equal_those_of_the_python_side(probe: ctypes.CDLL) -> None:
    constants = np.zeros(5)
    probe.probe_constants(as_pointer(constants))
    assert constants.tolist() == [
        fixed_point.LOSS_SCALE,
        fixed_point.SQUARE_SCALE,
        fixed_point.LOSS_LIMIT,
        fixed_point.SQUARE_LIMIT,
        fixed_point.NUM_COLUMNS,
    ]

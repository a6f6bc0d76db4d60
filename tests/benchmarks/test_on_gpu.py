"""The driver of the GPU measurements keeps what a part had measured, whatever ends the part; the parts run on a CPU."""

import argparse
import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from benchmarks import on_gpu
from benchmarks.gpu_parts import PARTS, kernel_kinds, matrix, startup, step, tests, trl
from benchmarks.gpu_parts.head import realistic_hidden_states
from benchmarks.gpu_parts.kernel_table import timed_rows
from benchmarks.gpu_parts.page import page, write_page
from benchmarks.gpu_parts.place import LLAMA_1B, Place, num_llama_parameters, peak_flops, share_of_peak
from benchmarks.gpu_parts.product_run import CommandResult
from benchmarks.gpu_parts.profiled_run import StepProfile, milliseconds_in_trace, watch_steps
from benchmarks.gpu_parts.rows import Row, attempt, without_folders
from benchmarks.kernels_timing import Contestant, milliseconds_on_gpu

ROOT = Path(__file__).parents[2]
ROW = "print(json.dumps({'table': 't', 'name': 'copy', 'values': {'ms': 1.5}, 'failed': None}), flush=True)"
CALL = {
    "device": "NVIDIA H100 80GB HBM3", "driver": "580.1",
    "versions": {"python": "3.12", "torch": "2.11.0", "trl": None},
    "commit": "0123456789ab", "date": "2026-11-28", "command": "python benchmarks/on_gpu.py", "size": "full",
}  # fmt: skip


def fake_part(folder: Path, code: str, *, limit: float = 30.0) -> on_gpu.PartResult:
    """Run a part that is these lines of Python."""
    command = [sys.executable, "-c", f"import json, os, sys, subprocess, time\n{code}"]
    return on_gpu.run_part("fake", command, limit=limit, folder=folder)


def measured(
    folder: Path, monkeypatch, codes: dict[str, str], *, budget_seconds: float = 60.0, **limits: float
) -> dict:
    """Return the result of a call whose parts are these lines of Python."""
    monkeypatch.setattr(on_gpu, "PARTS", {name: limits.get(name, 30.0) for name in codes})
    prelude = "import json, os, sys, time\n"
    monkeypatch.setattr(on_gpu, "part_command", lambda name, **_: [sys.executable, "-c", prelude + codes[name]])
    path = on_gpu.measure(list(codes), budget_seconds=budget_seconds, size="small", call=CALL, output=folder)
    return json.loads(path.read_text())


def test_a_part_that_ends_well_is_complete_with_its_rows_and_other_output_is_ignored(tmp_path):
    result = fake_part(tmp_path, f"print('Building extension ...')\n{ROW}\nprint('{{}}')\nprint('[1, 2]')")
    assert (result.outcome, result.rows) == ("complete", [Row(table="t", name="copy", values={"ms": 1.5})])


def test_a_part_that_fails_keeps_its_rows_and_its_reason_without_folders(tmp_path):
    result = fake_part(tmp_path, f"{ROW}\nraise OSError('no file /mnt/disk/x.json')")
    assert result.outcome == "ended with exit code 1: OSError: no file .../x.json"
    assert [row.name for row in result.rows] == ["copy"]


def test_a_part_that_hangs_is_killed_with_its_children_and_keeps_its_rows(tmp_path):
    child = "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)'])"
    number = "open('pid', 'w').write(str(child.pid))"
    started = time.monotonic()
    result = fake_part(tmp_path, f"os.chdir({str(tmp_path)!r})\n{child}\n{number}\n{ROW}\ntime.sleep(60)", limit=2.0)
    assert time.monotonic() - started < 30
    assert result.outcome == "stopped at its limit of 2 s"
    assert [row.name for row in result.rows] == ["copy"]
    assert is_gone(int((tmp_path / "pid").read_text()))


def test_children_of_a_part_that_has_ended_do_not_outlive_it(tmp_path):
    child = "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)'])"
    fake_part(tmp_path, f"{child}\nopen({str(tmp_path / 'pid')!r}, 'w').write(str(child.pid))")
    assert is_gone(int((tmp_path / "pid").read_text()))


def test_a_part_killed_in_the_middle_of_a_row_keeps_the_rows_before_it(tmp_path):
    half = 'sys.stdout.write(\'{"table": "t", "na\'); sys.stdout.flush()'
    result = fake_part(tmp_path, f"{ROW}\n{half}\nos.kill(os.getpid(), {int(signal.SIGKILL)})")
    assert result.outcome.startswith("ended with signal SIGKILL")
    assert [row.name for row in result.rows] == ["copy"]


def is_gone(number: int) -> bool:
    """Return whether a process has ended, or is a zombie that nobody has waited for, within five seconds."""
    for _ in range(100):
        stat = Path(f"/proc/{number}/stat")
        if not stat.exists() or stat.read_text().rpartition(")")[2].split()[0] == "Z":
            return True
        time.sleep(0.05)
    return False


def test_a_failing_and_a_hanging_part_do_not_end_the_others(tmp_path, monkeypatch):
    codes = {"tests": "sys.exit(3)", "loss": f"{ROW}\ntime.sleep(60)", "step": ROW}
    result = measured(tmp_path, monkeypatch, codes, loss=1.0)
    assert [(part["name"], part["outcome"], len(part["rows"])) for part in result["parts"]] == [
        ("tests", "ended with exit code 3: ", 0),
        ("loss", "stopped at its limit of 1 s", 1),
        ("step", "complete", 1),
    ]


def test_parts_that_the_budget_leaves_no_time_for_are_listed_as_not_run(tmp_path, monkeypatch):
    monkeypatch.setattr(on_gpu, "_SHORTEST_SECONDS", 1.0)
    result = measured(tmp_path, monkeypatch, {"tests": "time.sleep(60)", "loss": ROW}, budget_seconds=2.2)
    assert [part["outcome"] for part in result["parts"]] == [
        "stopped at its limit of 2 s",
        "not run: the budget was used up",
    ]


def test_a_part_gets_its_own_limit_or_what_is_left():
    assert on_gpu.limit_of("loss", left=400.0) == PARTS["loss"]
    assert on_gpu.limit_of("loss", left=20.0) == 20.0
    assert on_gpu.limit_of("loss", left=3.0) is None


def test_the_result_is_written_after_every_part(tmp_path, monkeypatch):
    count = f"import pathlib\nfound = list(pathlib.Path({str(tmp_path)!r}).glob('*.json'))"
    later = f"{count}\nassert len(json.loads(found[0].read_text())['parts']) == 1"
    result = measured(tmp_path, monkeypatch, {"tests": ROW, "loss": later})
    assert [part["outcome"] for part in result["parts"]] == ["complete", "complete"]


def test_a_second_result_of_a_day_and_device_gets_a_number(tmp_path):
    def name():
        return on_gpu.result_path(tmp_path, date="2026-11-28", device="NVIDIA H100 80GB HBM3")

    assert name().name == "2026-11-28-nvidia-h100-80gb-hbm3.json"
    name().touch()
    assert name().name == "2026-11-28-nvidia-h100-80gb-hbm3-2.json"


def test_parts_run_in_order_of_importance_and_an_unknown_one_is_refused():
    assert on_gpu.parts_argument("trl,loss") == ["loss", "trl"]
    with pytest.raises(argparse.ArgumentTypeError, match="kernels: no such part; expected some of tests, loss"):
        on_gpu.parts_argument("kernels")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [(["--size", "full"], "needs a CUDA device"), (["--parts", "loss"], "give another folder with --output DIR")],
)
def test_results_of_a_cpu_are_not_taken_for_those_of_a_gpu(arguments, message, capsys, monkeypatch):
    monkeypatch.setattr(on_gpu, "probe_device", lambda: {"device": None, "driver": None, "cuda": None})
    with pytest.raises(SystemExit) as refused:
        on_gpu.main(arguments)
    assert refused.value.code == 2
    assert message in capsys.readouterr().err


def test_the_call_is_described_without_folders_of_the_machine():
    device = {"device": "NVIDIA H200", "driver": "580.1", "cuda": "13.0"}
    call = on_gpu.describe_call(device, size="full", arguments=["--output", "/home/me/out/gpu"])
    assert call["command"] == "python benchmarks/on_gpu.py --output .../gpu"
    assert call["versions"]["torch"]
    assert "/home" not in json.dumps(call)


def test_help_explains_parts_and_wheels():
    done = subprocess.run([sys.executable, ROOT / "benchmarks/on_gpu.py", "--help"], capture_output=True, text=True)
    assert done.returncode == 0
    assert all(text in done.stdout for text in ("--budget-seconds", *PARTS, "pip install --no-index --no-deps"))


PAGE = """# Measured on a GPU

Written by `python benchmarks/on_gpu.py` from the JSON files in this folder; do not edit it. Contestants of a table take
turns; times are medians. A line that failed keeps its reason. What the numbers are to reach
is in `docs/targets.md`. A section of a CPU proves that the script runs, and no speed.

## NVIDIA H200

### 2026-11-29, commit unknown

Driver 581.0; python 3.12, torch 2.11.0, trl -. Command: `on_gpu.py --parts loss`, 31 s. [b.json](b.json)

| part | outcome | seconds | lines |
|---|---:|---:|---:|
| loss | stopped at its limit of 31 s | 31 | 0 |

## NVIDIA H100 80GB HBM3

### 2026-11-28, commit 0123456789ab

Driver 580.1; python 3.12, torch 2.11.0, trl -. Command: `python benchmarks/on_gpu.py`, 400 s. [a.json](a.json)

| part | outcome | seconds | lines |
|---|---:|---:|---:|
| loss | complete | 12 | 3 |
| trl | not run: the budget was used up | 0 | 0 |

**Loss, V=32000**

|  | ms | times the copy | chosen | failed |
|---|---:|---:|---:|---:|
| copy | 0.36 | 1 |  |  |
| ring_4 | 0.4012 | 1.114 | yes |  |
| Liger |  |  |  | ImportError: a \\| b |
"""


def two_results() -> dict[str, dict]:
    rows = [
        {"table": "Loss, V=32000", "name": "copy", "values": {"ms": 0.36, "times the copy": 1.0}, "failed": None},
        {"table": "Loss, V=32000", "name": "ring_4",
         "values": {"ms": 0.40118, "times the copy": 1.11438, "chosen": "yes"}, "failed": None},
        {"table": "Loss, V=32000", "name": "Liger", "values": {}, "failed": "ImportError: a | b"},
    ]  # fmt: skip
    unfinished = {"name": "trl", "outcome": "not run: the budget was used up", "seconds": 0.0, "rows": []}
    stopped = {"name": "loss", "outcome": "stopped at its limit of 31 s", "seconds": 31.0, "rows": []}
    complete = {"name": "loss", "outcome": "complete", "seconds": 12.3, "rows": rows}
    other = {"device": "NVIDIA H200", "driver": "581.0", "commit": None, "date": "2026-11-29"}
    command = "on_gpu.py --parts loss"
    return {
        "a.json": {**CALL, "seconds": 400.2, "parts": [complete, unfinished]},
        "b.json": {**CALL, **other, "command": command, "seconds": 31.4, "parts": [stopped]},
    }


def test_the_page_has_every_device_newest_first_with_failures_and_their_reasons(tmp_path):
    for name, result in two_results().items():
        (tmp_path / name).write_text(json.dumps(result))
    assert write_page(tmp_path).read_text() == PAGE


def test_of_one_day_the_last_result_comes_first():
    result = two_results()["a.json"]
    names = ["2026-11-28-x.json", "2026-11-28-x-2.json", "2026-11-28-x-10.json"]
    text = page([(name, result) for name in names])
    assert sorted(names, key=lambda name: text.index(f"[{name}]")) == names[::-1]


def test_a_measurement_that_fails_is_a_row_with_the_first_line_of_its_reason():
    def fail():
        raise RuntimeError("CUDA error: no kernel in /opt/x/y.so\nCompile with ...")

    row = attempt("t", "ring_8", fail)
    assert (row.values, row.failed) == ({}, "RuntimeError: CUDA error: no kernel in .../y.so")


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("at /tmp/a b", "at /tmp/a b".replace("/tmp/", ".../")),
        ("tokens/s and 1/2", "tokens/s and 1/2"),
        ("https://example.org/a/b", "https://example.org/a/b"),
        ('File "/a/b/c.py", line 3', 'File ".../c.py", line 3'),
        ("run.output_dir=/a/b/c", "run.output_dir=.../c"),
        ("benchmarks/results/gpu", "benchmarks/results/gpu"),
    ],
)
def test_folders_of_the_machine_are_left_out(text, shown):
    assert without_folders(text) == shown


def test_a_contestant_that_fails_leaves_the_others_timed(tmp_path):
    def fail():
        raise ValueError("rows of 303,872 bytes do not fit")

    place = Place(size="small", device="cpu", folder=tmp_path)
    ways = [Contestant(name="copy", run=lambda: None), Contestant(name="ring_1", run=fail)]
    copy, ring = timed_rows(place, "t", ways, floor="copy", floor_column="times the copy")
    assert copy.values["times the copy"] == 1.0
    assert ring.failed == "ValueError: rows of 303,872 bytes do not fit"


def test_on_a_gpu_the_clock_starts_after_the_preparation_while_the_device_is_busy(monkeypatch):
    order = []

    class Event:
        def __init__(self, *, enable_timing):
            assert enable_timing

        def record(self):
            order.append("event")

        def elapsed_time(self, end):
            return 0.36

    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "_sleep", lambda cycles: order.append("busy"))
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: order.append("wait"))
    copy = Contestant(name="copy", run=lambda: order.append("run"), prepare=lambda: order.append("prepare"))
    assert milliseconds_on_gpu(copy) == 0.36
    assert order == ["prepare", "busy", "event", "run", "event", "wait"]


def test_tokens_a_second_of_a_run_are_all_tokens_over_all_seconds(tmp_path):
    def record(speed, seconds):
        return {"perf/tokens_per_second": speed, "perf/step_seconds": seconds, "perf/data_seconds": 0.0,
                "perf/memory_gib": 36.204}  # fmt: skip

    place = Place(size="full", device="cpu", folder=tmp_path)
    values = step.speed_of([record(20_000, 2.0), record(40_000, 1.0)], place)
    assert values["tokens/s"] == 26_667  # 80,000 tokens in 3 seconds, not the mean of 30,000
    assert (values["step ms"], values["peak GiB"], values["M parameters"]) == (1500.0, 36.2, 1235.8)


def test_our_speed_is_put_beside_trls(tmp_path):
    place, output = Place(size="full", device="cpu", folder=tmp_path), tmp_path / "trl.json"
    (tmp_path / step.SPEED_FILE).write_text('{"tokens/s": 60000}')
    output.write_text('{"tokens_per_second": 40000.4, "peak_mib": 9000, "peak_gib_on_gpu": 30.5}')
    row = trl.row_of_output(place, "TRL", output, CommandResult(code=0))
    assert row.values == {
        "tokens/s": 40_000, "share of the peak (6N)": None, "peak GiB": 30.5, "ours / this, tokens/s": 1.5,
    }  # fmt: skip
    late = CommandResult(lines=[(1.0, "tokenizing")], is_late=True)
    failed = trl.row_of_output(place, "TRL", tmp_path / "none.json", late)
    assert failed.failed == "stopped at its limit; last line: tokenizing"


def test_the_hidden_states_of_the_head_have_the_loss_of_a_trained_model():
    torch.manual_seed(0)
    weight_VD = torch.nn.Linear(1024, 8000, bias=False).weight.detach()
    labels_N = torch.randint(0, 8000, (256,))
    losses_N = torch.nn.functional.cross_entropy(
        realistic_hidden_states(weight_VD, labels_N) @ weight_VD.t(), labels_N, reduction="none"
    )
    assert 0.5 < losses_N.mean() < 1.5
    assert 0.4 < (losses_N < 0.1).float().mean() < 0.7


def test_parameters_and_share_of_the_peak_are_those_of_llama_1b_on_an_h100():
    assert num_llama_parameters(LLAMA_1B) == 1_235_814_400
    assert share_of_peak(35_750, shape=LLAMA_1B, device_name="NVIDIA H100 80GB HBM3") == 0.268
    assert share_of_peak(35_750, shape=LLAMA_1B, device_name="NVIDIA H100 PCIe") is None
    assert peak_flops("NVIDIA A100-SXM4-80GB") == 312e12


@pytest.mark.parametrize(
    ("kernel", "kind"),
    [
        ("void versatune::ring_kernel<__nv_bfloat16, 4>(versatune::Rows)", "loss"),
        ("void (anonymous namespace)::softmax_warp_backward<...LogSoftMaxBackwardEpilogue>", "loss"),
        ("gradient_kernel", "loss"),
        ("nvjet_tst_128x256_64x4_2x1_v_bz_coopA_NNT", "products"),
        ("sm90_xmma_gemm_bf16bf16_bf16f32_f32_tn_n_tilesize64x64x64_cublas", "products"),
        ("void pytorch_flash::flash_bwd_dq_dk_dv_loop_seqk_parallel_kernel<...>", "attention"),
        ("fmha_cutlassF_bf16_aligned_64x128_rf_sm80", "attention"),
        ("triton_tem_fused_flex_attention_0", "attention"),
        ("void at::native::multi_tensor_apply_kernel<..., FusedAdamMathFunctor<...>>", "optimizer"),
        ("Memcpy DtoD (Device -> Device)", "copies"),
        ("void at::native::elementwise_kernel<..., direct_copy_kernel_cuda(...)>", "copies"),
        (
            "void at::native::vectorized_elementwise_kernel<4, at::native::silu_kernel(...)>",
            "norms, rotary, elementwise",
        ),
        ("_rms_norm_forward_kernel", "norms, rotary, elementwise"),
        ("something_new", "other"),
    ],
)
def test_a_kernel_belongs_to_the_kind_of_its_name(kernel, kind):
    assert kernel_kinds.kind_of(kernel) == kind


def test_kinds_are_summed_the_largest_first_and_other_last():
    times = {"nvjet_a": 2.0, "xmma_gemm": 1.0, "flash_fwd": 4.0, "mystery": 9.0}
    assert list(kernel_kinds.milliseconds_by_kind(times).items()) == [
        ("attention", 4.0), ("products", 3.0), ("other", 9.0),
    ]  # fmt: skip


def test_kernels_and_copies_of_a_trace_count_and_annotations_around_them_do_not():
    events = [
        {"cat": "kernel", "name": "nvjet_a", "dur": 1500},
        {"cat": "kernel", "name": "nvjet_a", "dur": 500},
        {"cat": "gpu_memcpy", "name": "Memcpy DtoD", "dur": 250},
        {"cat": "gpu_user_annotation", "name": "Optimizer.step#AdamW.step", "dur": 9000},
        {"cat": "cuda_runtime", "name": "cudaLaunchKernel", "dur": 7},
        {"name": "process_name", "ph": "M"},
    ]
    assert milliseconds_in_trace({"traceEvents": events}) == {"nvjet_a": 2.0, "Memcpy DtoD": 0.25}


def test_optimizer_steps_are_counted_and_micro_steps_are_not():
    class Engine:
        micro_steps = global_steps = 0

        def step(self):
            self.micro_steps += 1
            self.global_steps = self.micro_steps // 4

    ended = []
    watch_steps(Engine, on_end=ended.append)
    engine = Engine()
    for _ in range(9):
        engine.step()
    assert ended == [1, 2]


def test_a_profile_gives_milliseconds_a_step_of_the_steps_asked_for(tmp_path, capsys):
    profile = StepProfile(tmp_path / "profile.json", first=2, last=3)
    for number in (1, 2, 3):
        for _ in range(number):
            torch.ones(8) @ torch.ones(8)
        profile.end_of_step(number)
    assert json.loads((tmp_path / "profile.json").read_text())["aten::dot"] > 0
    assert capsys.readouterr().err.splitlines() == ["on_gpu: first step ended", "on_gpu: profile written"]


def test_pytest_results_are_counted_and_failures_listed_with_their_reasons():
    text = (
        "tests/gpu/test_k.py::test_a[32000-torch.bfloat16] PASSED      [ 10%]\n"
        "tests/gpu/test_k.py::test_b FAILED                           [ 20%]\n"
        "tests/gpu/test_k.py::test_c SKIPPED (no room: /a/b)          [ 30%]\n"
        "FAILED tests/gpu/test_k.py::test_b - AssertionError: 1 != 2\n"
    )
    counts, failure = tests.rows_of_output(text, code=1, is_stopped=False)
    assert counts.values == {"passed": 1, "failed": 1, "skipped": 1}
    assert (failure.name, failure.failed) == ("test_k.py::test_b", "AssertionError: 1 != 2")


def test_pytest_stopped_before_its_summary_keeps_its_counts():
    text = "tests/gpu/test_k.py::test_a PASSED [ 1%]\ntests/gpu/test_k.py::test_b FAILED [ 2%]\ntests/gpu/test_k.py::t"
    counts, failure = tests.rows_of_output(text, code=None, is_stopped=True)
    assert counts.values == {"passed": 1, "failed": 1, "skipped": 0, "stopped": "at its limit"}
    assert failure.failed == "failed"


def test_pytest_that_runs_nothing_is_a_failure():
    (row,) = tests.rows_of_output("ERROR: no module named pytest_timeout\n", code=4, is_stopped=False)
    assert row.failed == "no test ran (exit code 4): ERROR: no module named pytest_timeout"


def test_phases_of_a_start_add_up_to_the_end_of_the_first_step():
    lines = [
        (2.0, "a library prints"),
        (10.0, "10:00:10 INFO data"),
        (10.01, "10:00:10 INFO mixture"),
        (45.0, "10:00:45 INFO model: LlamaForCausalLM, 1,236 M parameters"),
        (45.5, "on_gpu: first step ended"),
        (60.0, "10:01:00 INFO step 4/200"),
    ]
    rows = list(startup.rows_of_log(lines))
    assert [row.values["seconds"] for row in rows] == [10.0, 35.0, 0.5, 45.5]
    assert rows[1].name == "until: model: LlamaForCausalLM, 1,236 M parameters"


def test_a_start_that_never_reached_a_step_says_so_after_its_phases():
    *phases, last = startup.rows_of_log([(10.0, "10:00:10 INFO data")])
    assert [row.values for row in phases] == [{"seconds": 10.0}]
    assert last.failed == "no step ended"


def test_a_resumed_run_that_differs_in_the_last_bit_is_not_ok(tmp_path):
    for name, loss in (("whole", 2.5), ("same", 2.5), ("other", 2.5000000000000004)):
        (tmp_path / name).mkdir()
        records = [{"step": 1, "train/loss": 3.0}, {"step": 2, "train/loss": loss}]
        (tmp_path / name / "metrics.jsonl").write_text("".join(f"{json.dumps(record)}\n" for record in records))
        (tmp_path / name / "decisions.jsonl").write_text('{"weights_after": [0.5, 0.5]}\n')
    assert matrix.compare_runs(tmp_path / "whole", tmp_path / "same") == 2
    with pytest.raises(RuntimeError, match=r"step 2: a loss of 2.5 uninterrupted, 2.5000000000000004 resumed"):
        matrix.compare_runs(tmp_path / "whole", tmp_path / "other")


@pytest.mark.slow
def test_every_part_runs_on_a_cpu_at_its_small_size(tmp_path, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    monkeypatch.chdir(ROOT)
    assert on_gpu.main(["--size", "small", "--budget-seconds", "550", "--output", str(tmp_path)]) == 0
    (path,) = tmp_path.glob("*.json")
    parts = {part["name"]: part for part in json.loads(path.read_text())["parts"]}
    assert {name: part["outcome"] for name, part in parts.items()} == dict.fromkeys(PARTS, "complete")
    failed = {row["name"]: row["failed"] for part in parts.values() for row in part["rows"] if row["failed"]}
    may_be_absent = ("Liger", "TRL", "cut_cross_entropy", "varlen_attn", "flex_attention")
    assert not [f"{name}: {reason}" for name, reason in failed.items() if not name.startswith(may_be_absent)]
    assert parts["step"]["rows"][0]["values"]["tokens/s"] > 0
    assert parts["startup"]["rows"][-1]["values"]["seconds"] > 0
    assert parts["matrix"]["rows"][0]["values"]["result"] == "ok: 8 losses and all decisions equal to the last bit"
    assert [row["name"] for row in parts["reference"]["rows"]] == ["code", "law"]
    assert str(tmp_path) not in path.read_text() + (tmp_path / "README.md").read_text()

"""Settings that DeepSpeed would ignore, or refuse late, are refused at once with the remedy."""

import re
from pathlib import Path

import deepspeed.runtime.config
import pytest
from deepspeed.runtime import constants

from versatune_ds.config import ModelConfig, TrainConfig
from versatune_ds.engine import ds_checks
from versatune_ds.engine.ds_checks import check_deepspeed_settings, check_model_settings
from versatune_ds.engine.ds_settings import deepspeed_config

ROOT = Path(__file__).parents[2]


def check(deepspeed, *, device_type="cpu", **settings):
    train = TrainConfig(**{"steps": 10, "precision": "fp32", "deepspeed": deepspeed, **settings})
    check_deepspeed_settings(train, deepspeed_config(train, world_size=1), device_type=device_type)


def offload(stage, key="offload_optimizer", **values):
    return {"zero_optimization": {"stage": stage, key: values}}


@pytest.mark.parametrize(
    ("deepspeed", "message"),
    [
        ({"zero_optimisation": {"stage": 2}}, r"unknown key 'zero_optimisation'; did you mean 'zero_optimization'\?$"),
        ({"wall_clock_brakdown": True}, r"unknown key 'wall_clock_brakdown'; did you mean 'wall_clock_breakdown'\?$"),
        ({"zero_optimization": {"stage": 2, "overlap_com": True}},
         r"unknown key 'zero_optimization\.overlap_com'; did you mean 'overlap_comm'\?$"),
        ({"zero_optimization": {"stage": 2, "reduce_bucket_size": -1}},
         r"zero_optimization\.reduce_bucket_size=-1: expected more than 0$"),
        (offload(0, device="cpu"), r"offload_optimizer to cpu needs ZeRO stage 1 or higher, but .*stage is 0$"),
        (offload(2, "offload_param", device="cpu"), r"offload_param to cpu needs ZeRO stage 3 or higher, but .*is 2$"),
        (offload(2, device="nvme", nvme_path="/"), r"offload_optimizer to nvme needs ZeRO stage 3 .*stage is 2$"),
        (offload(3, device="nvme"), r"offload_optimizer\.nvme_path=None: expected a folder on a local NVMe disk$"),
    ],
)  # fmt: skip
def test_a_deepspeed_setting_that_cannot_work_is_refused_in_one_line(deepspeed, message):
    with pytest.raises(ValueError, match=rf"^train\.deepspeed: .*{message}") as error:
        check(deepspeed)
    assert len(str(error.value).splitlines()) == 1


@pytest.mark.parametrize(
    ("deepspeed", "message"),
    [
        ({"sequence_parallel_size": 2}, r"'sequence_parallel_size': .*train.sequence_parallel, and leave"),
        ({"tensor_parallel": {"autotp_size": 4}}, r"'tensor_parallel': tensor parallelism is not .*zero3\.json\)$"),
        ({"autotp_size": 4}, r"'autotp_size': tensor parallelism is not supported: "),
        ({"expert_parallel": {"enabled": True}}, r"'expert_parallel': expert parallelism is not supported: "),
        ({"pipeline": {"stages": 2}}, r"'pipeline': pipeline parallelism is not supported: "),
        ({"zero_optimization": {"stage": 2, "zenflow": {"topk_ratio": 0.1}}}, r"'zero_optimization\.zenflow': Zen"),
        ({"compile": {"deepcompile": True}}, r"'compile': .*; model\.compile=true compiles the model's layers$"),
        ({"weight_quantization": {"enabled": True}}, r"'weight_quantization': quantised weights are not supported "),
        ({"checkpoint": {"load_universal": True}}, r"'checkpoint\.load_universal': a run converts its own "),
        ({"managed_gradient_accumulation": True}, r"'managed_gradient_accumulation': .*train\.rows_per_batch and "),
        ({"nebula": {"enabled": False}}, r"'nebula': the installed DeepSpeed no longer has it; leave it out$"),
        ({"zero_optimization": {"stage": 3, "mics_shard_size": 2}}, r"'zero_optimization\.mics_shard_size': the "),
    ],
)  # fmt: skip
def test_a_feature_of_deepspeed_that_is_not_supported_is_refused_with_its_own_message(deepspeed, message):
    with pytest.raises(ValueError, match=rf"^train\.deepspeed: {message}") as error:
        check(deepspeed)
    assert len(str(error.value).splitlines()) == 1


def test_no_key_that_deepspeed_reads_is_reported_as_unknown():
    source = Path(deepspeed.runtime.config.__file__).read_text(encoding="utf-8")
    read = set(re.findall(r"param_dict(?:\.get\(|\[)['\"]([a-z_]+)['\"]", source))
    read |= {constants.CHECKPOINT, constants.DATA_TYPES, constants.GRADIENT_CLIPPING, constants.GRADIENT_ALLREDUCE_OP}
    assert len(read) >= 5
    unknown = [key for key in read | set(ds_checks._REMOVED) if "unknown key" in refusal({key: {}})]
    assert not unknown


def refusal(settings):
    try:
        ds_checks.check_keys(settings)
    except ValueError as error:
        return str(error)
    return ""


def test_a_feature_that_is_switched_off_passes():
    check({
        "sequence_parallel_size": 1, "tensor_parallel": {"autotp_size": 1}, "pipeline": {}, "hybrid_engine":
        {"enabled": False}, "compile": {"deepcompile": False}, "checkpoint": {"load_universal": False},
    })  # fmt: skip


def test_nvme_offload_without_the_library_for_it_is_refused(monkeypatch, tmp_path):
    monkeypatch.setattr(ds_checks.AsyncIOBuilder, "is_compatible", lambda self, verbose=True: False)
    with pytest.raises(ValueError, match=r"offload_optimizer to nvme needs libaio.*; offload to cpu instead$"):
        check(offload(3, device="nvme", nvme_path=str(tmp_path)))
    monkeypatch.setattr(ds_checks.AsyncIOBuilder, "is_compatible", lambda self, verbose=True: True)
    check(offload(3, device="nvme", nvme_path=str(tmp_path)))


def test_fp16_needs_a_gpu():
    with pytest.raises(ValueError, match=r"^train\.precision: fp16 needs a GPU; use bf16 .* or fp32 on the CPU$"):
        check({"zero_optimization": {"stage": 2}}, precision="fp16")
    check({"zero_optimization": {"stage": 2}}, precision="fp16", device_type="cuda")


def test_eight_bit_states_need_a_gpu_the_library_and_no_offloading(monkeypatch):
    found = [None]
    monkeypatch.setattr(ds_checks, "find_spec", lambda name: found[0])
    with pytest.raises(ValueError, match=r"^train\.optimizer: adamw_8bit needs a GPU; use adamw or deepspeed_adam"):
        check({}, optimizer="adamw_8bit")
    with pytest.raises(ValueError, match=r"bitsandbytes; pip install -e '\.\[8bit\]'$"):
        check({}, optimizer="adamw_8bit", device_type="cuda")
    with pytest.raises(ValueError, match=r"on the GPU, but train\.deepspeed offloads the optimizer"):
        check(offload(2, device="cpu"), optimizer="adamw_8bit", device_type="cuda")
    found[0] = object()
    check({}, optimizer="adamw_8bit", device_type="cuda")


@pytest.mark.parametrize("path", sorted((ROOT / "ds_configs").glob("*.json")), ids=lambda p: p.stem)
def test_the_projects_files_pass_except_for_their_nvme_path(path):
    if "nvme" in path.stem:
        with pytest.raises(ValueError, match=r"nvme_path='/local_nvme': expected a folder"):
            check(path)
    else:
        check(path)


def test_commonly_copied_settings_pass():
    check(
        {
            "zero_optimization": {"stage": 3, "reduce_bucket_size": "auto", "stage3_prefetch_bucket_size": "auto"},
            "train_batch_size": "auto",
            "wall_clock_breakdown": False,
            "activation_checkpointing": {"cpu_checkpointing": False, "number_checkpoints": None},
            "gradient_allreduce_op": "mean",
            "checkpoint": {"parallel_write": {"pipeline_stage": False}},
        }
    )


@pytest.mark.parametrize(
    ("settings", "key"), [({"compile": True}, r"compile"), ({"lora": {"use_dora": True}}, r"lora\.use_dora")]
)
def test_model_settings_that_zero_3_does_not_support_are_refused(settings, key):
    model = ModelConfig(from_config={"model_type": "llama"}, **settings)
    with pytest.raises(ValueError, match=rf"^model\.{key}: not supported under ZeRO stage 3, .* leave it out$"):
        check_model_settings(model, {"zero_optimization": {"stage": 3}})
    check_model_settings(model, {"zero_optimization": {"stage": 2}})

"""The estimate of a GPU's memory is exact for parameters and states, and close to what two ranks allocate."""

import functools
import itertools
from types import SimpleNamespace

import pytest
from ranks import run_ranks
from tiny_run import be_trained, tiny_config
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.profiler import ProfilerActivity, profile

from versatune_ds.engine.ds_settings import deepspeed_config
from versatune_ds.model.build import build_causal_lm
from versatune_ds.preflight import memory_estimate
from versatune_ds.preflight.activations import decoder_pass_bytes
from versatune_ds.preflight.capacity import check_memory, checkpoint_bytes, estimates_of, snapshot_bytes
from versatune_ds.preflight.memory_estimate import estimate_memory, measure_model
from versatune_ds.preflight.subject import CheckRequest, Subject

SPECIAL = {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 2}


class Decoder(nn.Module):
    """Square an embedding, so that the saved bytes can be computed by hand."""

    def __init__(self):
        super().__init__()
        self.config = SimpleNamespace(_attn_implementation="sdpa")
        self.embed = nn.Embedding(10, 8)

    def get_decoder(self):
        return self

    def forward(self, *, input_ids, **_):
        return (self.embed(input_ids) ** 2,)


def test_saved_activations_are_counted_to_the_byte():
    with FakeTensorMode():
        found = decoder_pass_bytes(Decoder(), num_rows=2, row_tokens=16)
    states = 2 * 16 * 8 * 4
    # alive after the forward pass: the embedded tokens, which the square saved, and its result
    assert found.saved == 2 * states
    assert found.peak > found.saved


def test_parameters_are_those_of_the_real_model_and_checkpointing_saves_fewer_activations(tmp_path):
    config = tiny_config(tmp_path)
    arguments = {"vocab_size": 512, "special_ids": SPECIAL}
    size, plain = measure_model(config, is_checkpointed=False, **arguments)
    _, checkpointed = measure_model(config, is_checkpointed=True, **arguments)
    real = build_causal_lm(config.model, precision="fp32", **arguments)
    assert size.num_parameters == size.num_trained == sum(parameter.numel() for parameter in real.parameters())
    assert (size.vocabulary, size.hidden) == (512, 32)
    assert checkpointed.saved < plain.saved / 3


def test_sequence_parallel_divides_the_activations_and_the_heads_logits(tmp_path):
    found = []
    for num_slices in (1, 2):
        config = tiny_config(tmp_path, f"train.sequence_parallel={num_slices}", "data.row_tokens=4096")
        size, passes = measure_model(config, is_checkpointed=True, vocab_size=512, special_ids=SPECIAL)
        found.append(
            estimate_memory(config, size=size, passes=passes, ds_config={"zero_optimization": {}}, world_size=2)
        )
    whole, sliced = found
    assert sliced.head < 0.6 * whole.head
    assert sliced.activations < 0.9 * whole.activations
    assert sliced.parameters == whole.parameters


def test_with_lora_only_the_adapters_count_as_trained(tmp_path):
    config = tiny_config(tmp_path, "model.lora={rank: 2}")
    size, _ = measure_model(config, vocab_size=512, is_checkpointed=True, special_ids=SPECIAL)
    real = build_causal_lm(config.model, precision="fp32", vocab_size=512, special_ids=SPECIAL)
    trained = sum(parameter.numel() for parameter in real.parameters() if parameter.requires_grad)
    assert 0 < size.num_trained == trained < size.num_parameters / 2
    assert not size.is_head_trained


def test_attention_without_a_mask_is_counted_without_a_mask(tmp_path):
    """A GPU's varlen keeps no mask [B,1,T,T], and reads keys and values of fewer heads as they are."""
    overrides = ["model.from_config.attention_dropout=0.0", "train.precision=bf16"]
    overrides += ["model.from_config.num_attention_heads=4", "model.from_config.hidden_size=64"]
    arguments = {"vocab_size": 512, "special_ids": SPECIAL, "is_checkpointed": False}

    def saved(row_tokens, *, device_type):
        config = tiny_config(tmp_path, *overrides, f"data.row_tokens={row_tokens}")
        size, passes = measure_model(config, **arguments, device_type=device_type)
        assert size.attention.startswith({"cpu": "sdpa (on a CPU)", "cuda": "varlen ("}[device_type])
        return passes.saved

    mask, repeated = 2 * 512**2, 2 * 2 * (2 * 512) * (4 - 2) * 16 * 2
    assert saved(512, device_type="cpu") - saved(512, device_type="cuda") > mask + repeated
    assert saved(1024, device_type="cuda") == pytest.approx(2 * saved(512, device_type="cuda"), rel=1e-3)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_states_shrink_with_zero_stage_and_number_of_ranks(tmp_path, precision):
    config = tiny_config(tmp_path, f"train.precision={precision}")
    size, passes = measure_model(config, vocab_size=512, is_checkpointed=False, special_ids=SPECIAL)
    found = {}
    for stage, world_size in itertools.product((1, 2, 3), (1, 4)):
        train = config.train.model_copy(update={"deepspeed": {"zero_optimization": {"stage": stage}}})
        found[stage, world_size] = estimate_memory(
            config, size=size, passes=passes, ds_config=deepspeed_config(train, world_size=world_size),
            world_size=world_size,
        )  # fmt: skip
    num_bytes, count = (4 if precision == "fp32" else 2), size.num_parameters
    assert found[2, 1].parameters == found[2, 4].parameters == count * num_bytes
    assert found[3, 4].parameters == count * num_bytes // 4
    assert (found[1, 1].optimizer, found[1, 4].optimizer) == (12 * count, 3 * count)
    assert found[2, 4].gradients < found[1, 4].gradients
    assert found[2, 4].buffers == 500_000_000 * num_bytes
    on_disk = [
        checkpoint_bytes(config, size=size, ds_config={"zero_optimization": {"stage": stage}}) for stage in (2, 3)
    ]
    assert on_disk == [(12 + num_bytes) * count, 12 * count]
    copied = [
        snapshot_bytes(config, size=size, ds_config={"zero_optimization": {"stage": stage}}, world_size=4)
        for stage in (0, 2, 3)
    ]
    kept = 8 if precision == "fp32" else 12
    assert copied == [(kept + num_bytes) * count, num_bytes * count + 3 * count, 3 * count]


@pytest.mark.parametrize(
    ("request_of", "pages", "level", "words"),
    [
        ({}, 1 << 22, "ok", "of 16.0 GiB of RAM, this machine's 16.0 over 1 process"),
        (
            {"gpus_per_node": 2, "environ": {"DS_ACCELERATOR": "cpu"}},
            1 << 22,
            "ok",
            "of 8.0 GiB of RAM, this machine's 16.0 over 2",
        ),
        ({"environ": {"DS_ACCELERATOR": "cpu"}}, 1, "warn", "but each has 0.0 GiB of RAM, this machine's 0.0 over 1"),
        ({"nodes": 2, "environ": {"DS_ACCELERATOR": "cpu"}}, 1, "ok", "not compared: the run is on other machines"),
        ({"gpus_per_node": 2}, 1, "ok", "not compared: no GPU here to ask; give a GPU's memory with --gpu-memory GIB"),
    ],
)
def test_without_a_gpu_the_estimate_says_what_it_is_compared_with(
    tmp_path, monkeypatch, request_of, pages, level, words
):
    monkeypatch.setattr("os.sysconf", {"SC_PAGE_SIZE": 4096, "SC_PHYS_PAGES": pages}.get)
    subject = Subject(tiny_config(tmp_path), CheckRequest(**request_of), num_gpus_here=0)
    (*_, found) = [finding for finding in check_memory(subject) if finding.check == "memory"]
    assert (found.level, found.key) == (level, "--gpu-memory" if "--gpu-memory" in words else "RAM a process")
    assert words in found.text


def test_the_memory_of_a_background_save_is_reported(tmp_path):
    for is_on in ("true", "false"):
        config = tiny_config(tmp_path, f"checkpoint.background={is_on}")
        findings = check_memory(Subject(config, CheckRequest(gpus_per_node=2), num_gpus_here=0))
        texts = [finding.found for finding in findings if finding.key == "checkpoint.background"]
        assert len(texts) == (is_on == "true"), texts
        assert all("GiB of the host's memory in each process" in text for text in texts)


def test_masters_and_moments_in_bf16_take_6_bytes_a_parameter_instead_of_12(tmp_path):
    config = tiny_config(tmp_path, "train.precision=bf16")
    size, passes = measure_model(config, vocab_size=512, is_checkpointed=False, special_ids=SPECIAL)
    states = {"bf16_master_weights_and_grads": True, "bf16_optimizer_states": True}
    found = []
    for bf16 in ({}, states):
        settings = {"zero_optimization": {"stage": 3}, "bf16": bf16}
        estimate = estimate_memory(config, size=size, passes=passes, ds_config=settings, world_size=1)
        found.append((estimate.optimizer, checkpoint_bytes(config, size=size, ds_config=settings)))
    count = size.num_parameters
    assert found == [(12 * count, 12 * count), (6 * count, 6 * count)]


@pytest.mark.parametrize("stage", [2, 3])
def test_an_auto_setting_counts_as_deepspeeds_default(tmp_path, stage):
    config = tiny_config(tmp_path)
    size, passes = measure_model(config, vocab_size=512, is_checkpointed=False, special_ids=SPECIAL)
    keys = ("reduce_bucket_size", "stage3_max_live_parameters", "sub_group_size", "overlap_comm")
    estimates = [
        estimate_memory(
            config, size=size, passes=passes, ds_config={"zero_optimization": {"stage": stage, **zero}}, world_size=2
        )
        for zero in ({}, dict.fromkeys(keys, "auto"))
    ]
    assert estimates[0] == estimates[1]


def trained_bytes(config, world):
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        be_trained(config, world)
    events = profiler.profiler.kineto_results.events()
    changes = sorted((event.start_ns(), event.nbytes()) for event in events if event.name() == "[memory]")
    return max(itertools.accumulate(num_bytes for _, num_bytes in changes))


@pytest.mark.slow
@pytest.mark.parametrize("stage", [2, 3])
def test_the_estimate_is_close_to_what_two_ranks_allocate(tmp_path, monkeypatch, stage):
    monkeypatch.setenv("VERSATUNE_KERNELS", "torch")
    zero = f"{{stage: {stage}, reduce_bucket_size: 100000, overlap_comm: false}}"
    overrides = ["train.steps=2", "data.row_tokens=512", "model.from_config.hidden_size=64"]
    config = tiny_config(tmp_path, *overrides, f"train.deepspeed={{zero_optimization: {zero}}}")
    allocated = max(run_ranks(functools.partial(trained_bytes, config), world_size=2, folder=tmp_path))
    # The estimate is of GPUs, where AdamW is fused and needs no temporaries; the measured run is on CPUs.
    monkeypatch.setattr(memory_estimate, "has_fused_adamw", lambda *arguments, **settings: False)
    estimate = estimates_of(Subject(config, CheckRequest(gpus_per_node=2), num_gpus_here=0)).chosen
    assert estimate.peak == pytest.approx(allocated, rel=0.2)


@pytest.mark.parametrize(
    ("stage", "optimizer", "gradients", "step"),
    [(2, "adamw", 4, 0), (3, "adamw", 4, 4), (1, "adamw", 4, 4), (2, "deepspeed_adam", 4, 8)],
)
def test_gradients_summed_in_fp32_cost_twice_as_much_and_a_fused_step_nothing(
    tmp_path, stage, optimizer, gradients, step
):
    """Bytes a parameter on one GPU, in bf16 with four micro-steps; stage 1 keeps the gradients and a partition."""
    config = tiny_config(tmp_path, "train.precision=bf16", f"train.optimizer={optimizer}")
    size, passes = measure_model(config, vocab_size=512, is_checkpointed=False, special_ids=SPECIAL)
    train = config.train.model_copy(update={"deepspeed": {"zero_optimization": {"stage": stage}}})
    ds_config = deepspeed_config(train, world_size=1)
    estimate = estimate_memory(config, size=size, passes=passes, ds_config=ds_config, world_size=1)
    assert (estimate.gradients, estimate.step) == (gradients * size.num_parameters, step * size.num_parameters)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_experts_are_counted_in_every_precision(tmp_path, precision):
    """Torch's fake form of the experts' product takes bf16 alone; activations in fp32 are twice as many bytes."""
    experts = {"model_type": "mixtral", "num_local_experts": 4, "num_experts_per_tok": 2, "output_router_logits": True}
    config = tiny_config(tmp_path, f"train.precision={precision}")
    mapping = {key: value for key, value in config.model.from_config.items() if key != "attention_dropout"}
    model = config.model.model_copy(update={"from_config": {**mapping, **experts}})
    config = config.model_copy(update={"model": model})
    size, passes = measure_model(config, vocab_size=512, is_checkpointed=False, special_ids=SPECIAL)
    # By layer: attention 4 x 32 x 32, experts 4 x 3 x 32 x 64, router 4 x 32, two norms; the last norm; the embedding.
    assert size.num_parameters == 2 * (4 * 32 * 32 + 4 * 3 * 32 * 64 + 4 * 32 + 2 * 32) + 32 + 512 * 32
    assert size.num_active == size.num_parameters - 2 * 2 * 3 * 32 * 64  # a token uses two of the four
    num_bytes = 4 if precision == "fp32" else 2
    tokens = config.train.rows_per_micro_batch * config.data.row_tokens
    assert passes.saved > 2 * tokens * 2 * 3 * 64 * num_bytes  # gate, up and their product of two experts in two layers

"""The slurm section: values that sbatch would refuse or misunderstand are reported before the job is queued."""

import pytest
from tiny_run import tiny_config

from versatune_ds.config.load import set_by_dotted_key


@pytest.mark.parametrize(
    ("text", "expected"),
    [("24:00:00", "24:00:00"), ("1:30", "1:30"), ("02:00:00", "02:00:00"), ("90", "90"), ("1-12", "1-12")],
)
def test_a_time_limit_is_kept_as_the_user_wrote_it(tmp_path, text, expected):
    assert tiny_config(tmp_path, f"slurm.time={text}").slurm.time == expected


def test_other_numbers_of_the_section_stay_numbers():
    values = {}
    for override in ("a=12", "b=-1.5", "c=0x10", "d=1_000", "e=[1, 2]"):
        set_by_dotted_key(values, override)
    assert values == {"a": 12, "b": -1.5, "c": 16, "d": 1000, "e": [1, 2]}


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("slurm.time=two hours", r"^slurm.time: expected a time such as 90 \(minutes\), .* \(got 'two hours'\)$"),
        ("slurm.nodes=0", r"^slurm.nodes: expected 1 or more"),
        ("slurm.memory=200GB", r"^slurm.memory: expected a number with K, M, G or T behind it, such as 200G"),
        ("slurm.array=0..3", r"^slurm.array: expected task numbers such as 0-3, 1,5 or 0-9%2"),
        ("slurm.sbatch_options=exclusive", r"^slurm.sbatch_options: 'exclusive': expected --option or --option=value"),
        ("slurm.container={image: a.sif, mounts: [/data]}", r"mounts: '/data': expected OUTSIDE:INSIDE"),
        (
            "slurm.memory_per_gpu=64G",
            r"^slurm\.memory_per_gpu: needs slurm\.gpus_per_node, which is not set; set it, or",
        ),
        (
            "slurm={gpus_per_node: 8, memory: 0, memory_per_gpu: 64G}",
            r"^slurm\.memory_per_gpu: 64G, and slurm\.memory is 0: both",
        ),
        ("slurm.gpu_per_node=8", r"^slurm.gpu_per_node: unknown key; did you mean 'gpus_per_node'\?"),
    ],
)
def test_a_mistake_is_reported_in_one_line_with_its_key(tmp_path, override, message):
    with pytest.raises(ValueError, match=message) as error:
        tiny_config(tmp_path, override)
    assert "\n" not in str(error.value)


def test_a_node_runs_one_process_for_each_gpu_by_default(tmp_path):
    def processes(*overrides):
        return tiny_config(tmp_path, *overrides).slurm.num_processes_per_node

    assert processes() == 1
    assert processes("slurm.gpus_per_node=8") == 8
    assert processes("slurm.gpus_per_node=8", "slurm.processes_per_node=4") == 4

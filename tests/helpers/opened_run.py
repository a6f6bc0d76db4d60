"""A run's folder as a start leaves it, without a model, a tokenizer or a step."""

from __future__ import annotations

import numpy as np

from versatune_ds.config.load import parse_config
from versatune_ds.distributed import World
from versatune_ds.domains import DomainSet
from versatune_ds.mixture.reference import References
from versatune_ds.training.run_folder import RunStart, check_run_folder, open_run_folder, write_record


def config(tmp_path, **train):
    return parse_config(
        {
            "run": {"name": "r", "output_dir": str(tmp_path)},
            "model": {"from_config": {"model_type": "llama"}},
            "data": {"synthetic": {}},
            "train": {"steps": 10, **train},
            "mixture": {"policy": "versatune"},
        }
    )


class Saved:
    """Stand in for a tokenizer, a model and its config."""

    generation_config = None

    def __init__(self):
        self.config = self

    def save_pretrained(self, folder):
        folder.mkdir(exist_ok=True)


def open_folder(settings, *, is_fresh=False, step=0, losses=(1.5, 2.0), is_killed=False):
    domain_set = DomainSet(("law", "code"))
    start = RunStart(
        tokenizer=Saved(), causal_lm=Saved(), weights_K=np.array([0.25, 0.75]), domain_set=domain_set,
        references=References(losses_K=np.array(losses)),
    )  # fmt: skip
    check_run_folder(settings, is_fresh=is_fresh)
    open_run_folder(settings, World(), start=start, is_fresh=is_fresh)
    if not is_killed:
        write_record(settings, World(), start=start, step=step)
    return settings.run_dir

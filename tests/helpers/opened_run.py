"""Make a run's folder as after its first line of metrics, without a model, a tokenizer or a step."""

from __future__ import annotations

from versatune_ds.config.load import parse_config
from versatune_ds.distributed import World
from versatune_ds.run_folder.folder import RunStart, check_run_folder, open_run_folder, write_record


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


def open_folder(
    settings, *, is_fresh=False, step=0, losses=(1.5, 2.0), is_killed=False, made_on=None, has_begun=True, plan=None
):
    start = RunStart(
        prior={"weights": {"law": 0.25, "code": 0.75}, "origin": str(settings.mixture.prior)},
        plan=plan,
        reference={"losses": dict(zip(("law", "code"), losses, strict=True))},
        weights_made_on=made_on,
        save_parts=lambda folder: [(folder / name).mkdir(exist_ok=True) for name in ("tokenizer", "model")],
    )
    check_run_folder(settings, is_fresh=is_fresh)
    open_run_folder(settings, World(), start=start, is_fresh=is_fresh)
    if not is_killed:
        write_record(settings, World(), start=start, step=step)
    if has_begun and not is_killed and not (settings.run_dir / "metrics.jsonl").exists():
        (settings.run_dir / "metrics.jsonl").write_text('{"step": 0}\n')
    return settings.run_dir

"""Define the sections of a recipe, except the mixture's own.

The one idea: every size carries its unit in its name (`_tokens`, `_steps`, `rows_per_x`), so that no number has to be
explained twice.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag, field_validator, model_validator

from versatune_ds.config.mixture import MixtureConfig
from versatune_ds.config.section import Section
from versatune_ds.domains import nearest_name


class RunSection(Section):
    """Name the run and where it lives."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    """Folder name of the run under `output_dir`; a run whose folder exists is resumed."""
    output_dir: Path = Path("runs")
    """Folder that holds the runs; relative to the working folder."""
    seed: int = Field(default=0, ge=0, lt=2**63)
    """Seed of everything random: initial weights, data order, dropout."""


class ModelConfig(Section):
    """Say which model is fine-tuned and which tokenizer reads the text."""

    name_or_path: str | None = None
    """Folder saved by transformers, or a Hub name."""
    from_config: dict[str, Any] | None = None
    """A transformers config as a mapping with `model_type`; the model starts from random weights."""
    tokenizer: str | None = None
    """Folder or Hub name of the tokenizer; without it the model's own, and without that one trained on the data."""
    tokenizer_vocab_size: int = Field(default=4096, ge=300)
    """Vocabulary size of a tokenizer trained on the data."""
    trust_remote_code: bool = False
    """Run Python code that comes with the model. Off unless you trust its author."""
    attention: Literal["sdpa", "eager", "flash_attention_2"] = "sdpa"
    """Attention implementation of transformers."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass: less memory, about a third more time."""

    @model_validator(mode="after")
    def _has_one_origin(self) -> ModelConfig:
        """Check that exactly one origin of the weights is given."""
        if (self.name_or_path is None) == (self.from_config is None):
            raise ValueError("give exactly one of model.name_or_path and model.from_config")
        if self.from_config is not None and "model_type" not in self.from_config:
            raise ValueError("model.from_config: key 'model_type' is missing (for example: model_type: llama)")
        return self


class HubDataset(Section):
    """Name a data set of the Hugging Face Hub, or a local folder laid out like one."""

    hub: str = Field(min_length=1)
    """`owner/name`, or a folder that `datasets.load_dataset` reads."""
    config: str | None = None
    """Configuration of the data set, where it has several."""
    split: str = Field(default="train", pattern=r"^[^\[\]]+$")
    """Whole split; slices such as `train[:10%]` are not read."""
    revision: str | None = None
    """Commit, tag or branch; a commit makes the run repeatable."""


def _source_kind(source: Any) -> str:
    """Tell a Hub data set, given as a mapping, from a path."""
    return "hub" if isinstance(source, (dict, HubDataset)) else "path"


DataSource = Annotated[Annotated[str, Tag("path")] | Annotated[HubDataset, Tag("hub")], Discriminator(_source_kind)]


ROW_PARTS = ("messages", "tools", "system", "prompt", "context", "answer", "text")


class DomainFiles(Section):
    """Name the files of one domain."""

    train: tuple[DataSource, ...]
    """File, glob, folder (also one saved by `save_to_disk`) or `{hub: owner/name}` of training rows, or a list."""
    valid: tuple[DataSource, ...] | None = None
    """The same for held-out rows; without it `data.valid_fraction` of the training rows is held out."""
    columns: dict[str, str] | None = None
    """Part to column name, where the form of the rows is not recognised: prompt and answer, messages, or text."""

    @field_validator("train", "valid", mode="before")
    @classmethod
    def _as_list(cls, sources: Any) -> Any:
        """Let one source stand without a list around it."""
        return (sources,) if isinstance(sources, (str, dict, HubDataset)) else sources

    @field_validator("columns")
    @classmethod
    def _make_a_row(cls, columns: dict[str, str] | None) -> dict[str, str] | None:
        """Check that the mapped parts are known and enough for a row."""
        for part in columns or ():
            if part not in ROW_PARTS:
                raise ValueError(f"unknown part {part!r}; {nearest_name(part, ROW_PARTS)}")
        parts = set(columns or ROW_PARTS)
        if not (parts >= {"prompt", "answer"} or parts & {"messages", "text"}):
            raise ValueError("a row needs prompt and answer, or messages, or text")
        return columns


class SyntheticCorpus(Section):
    """Ask for the built-in corpus."""

    num_rows: int | dict[str, int] | None = None
    """Training rows a domain (one number or a mapping); the corpus's own sizes by default."""
    num_valid_rows: int = Field(default=150, ge=1)
    """Held-out rows a domain."""
    num_test_rows: int = Field(default=150, ge=1)
    """Test rows a domain."""
    seed: int = Field(default=0, ge=0)
    """Seed of the corpus; another seed gives other questions."""


class DataConfig(Section):
    """Say where each domain's rows come from and how they become tokens."""

    folder: Path | None = None
    """Folder with train/DOMAIN.jsonl and valid/DOMAIN.jsonl; every file in train/ is a domain."""
    domains: dict[str, DomainFiles] | None = None
    """Domain name to files; the order here is the order everywhere."""
    synthetic: SyntheticCorpus | None = None
    """Use the built-in corpus."""
    row_tokens: int = Field(default=512, ge=8)
    """Length of a packed row, in tokens (the context)."""
    loss_on: Literal["assistant", "all"] = "assistant"
    """Which tokens bear loss: the assistant's turns, or every token."""
    long_examples: Literal["truncate", "split"] = "truncate"
    """What happens to an example longer than a row: cut its end, or go on in further examples. Both are counted."""
    chat_template: Path | None = None
    """Jinja file with a chat template; without it the tokenizer's own, and without that a built-in one."""
    valid_fraction: float = Field(default=0.02, gt=0, lt=0.5)
    """Share of rows held out, by content hash, for domains without `valid` files."""
    max_bad_rows: int | float = Field(default=0.01, ge=0)
    """Bad rows a domain may have: a count, or a fraction of its rows when below 1."""
    max_epochs_per_domain: float | None = Field(default=None, gt=0)
    """Passes over a domain's rows before its share goes to the others; no cap by default."""
    num_processes: int = Field(default=1, ge=1)
    """Processes that tokenise."""
    cache_dir: Path | None = None
    """Folder of prepared shards; by default `output_dir`/.cache/shards."""

    @model_validator(mode="after")
    def _has_one_origin(self) -> DataConfig:
        """Check that exactly one origin of the rows is given."""
        given = [key for key in ("folder", "domains", "synthetic") if getattr(self, key) is not None]
        if len(given) != 1:
            found = f"both {' and '.join('data.' + key for key in given)}" if given else "none"
            raise ValueError(f"give exactly one of data.folder, data.domains and data.synthetic; found {found}")
        return self


class TrainConfig(Section):
    """Set the optimisation: lengths in optimizer steps, batch sizes in packed rows."""

    steps: int = Field(ge=1)
    """Optimizer steps of the whole run."""
    rows_per_batch: int = Field(default=8, ge=1)
    """Packed rows of one optimizer step, over all processes."""
    rows_per_micro_batch: int = Field(default=1, ge=1)
    """Packed rows one process takes through the model at a time."""
    learning_rate: float = Field(default=2e-5, gt=0)
    """Peak learning rate."""
    learning_rate_schedule: Literal["cosine", "linear", "constant"] = "cosine"
    """How the rate falls after the warm-up."""
    min_learning_rate_fraction: float = Field(default=0.1, ge=0, le=1)
    """Where it ends, as a fraction of the peak."""
    warmup_fraction: float = Field(default=0.03, ge=0, lt=1)
    """Share of the steps over which the rate rises linearly from 0."""
    weight_decay: float = Field(default=0.0, ge=0)
    """AdamW's decoupled weight decay; biases and norms are left out."""
    beta1: float = Field(default=0.9, ge=0, lt=1)
    beta2: float = Field(default=0.95, ge=0, lt=1)
    max_grad_norm: float = Field(default=1.0, ge=0)
    """Gradient norm above which gradients are scaled down; 0 turns clipping off."""
    precision: Literal["fp32", "bf16", "fp16"] = "bf16"
    """Number format of weights and activations; the optimizer keeps fp32."""
    deepspeed: Path | dict[str, Any] = Field(default={"zero_optimization": {"stage": 2}})
    """DeepSpeed settings: a JSON file or a mapping. Batch, precision and optimizer come from this section."""


class ValidationConfig(Section):
    """Set how the losses that steer are measured."""

    max_examples_per_domain: int | None = Field(default=200, ge=2)
    """Held-out examples a domain used while training; always the same ones. None uses all."""
    rows_per_micro_batch: int | None = Field(default=None, ge=1)
    """Packed rows one process evaluates at a time; as in training by default."""


class CheckpointConfig(Section):
    """Set when state is saved."""

    every: int | None = Field(default=None, ge=1)
    """Optimizer steps between checkpoints; by default only at the end and at a signal."""
    keep: int = Field(default=2, ge=1)
    """Newest checkpoints kept."""


class WandbConfig(Section):
    """Set up Weights & Biases. Its key comes from the environment alone."""

    mode: Literal["online", "offline", "off"] = "off"
    project: str = "versatune"
    entity: str | None = None
    group: str | None = None
    """Runs compared with each other share a group."""


class MonitorConfig(Section):
    """Set what is written while the run goes on."""

    log_every: int = Field(default=10, ge=1)
    """Optimizer steps between lines on the terminal and in metrics.jsonl."""
    wandb: WandbConfig = WandbConfig()


class RunConfig(Section):
    """The whole recipe."""

    run: RunSection
    model: ModelConfig
    data: DataConfig
    train: TrainConfig
    mixture: MixtureConfig
    validation: ValidationConfig = ValidationConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()
    monitor: MonitorConfig = MonitorConfig()

    @model_validator(mode="after")
    def _can_pack_with_its_attention(self) -> RunConfig:
        """Check that attention stays within examples."""
        sizes = {self.train.rows_per_micro_batch, self.validation.rows_per_micro_batch or 1}
        if self.model.attention == "flash_attention_2" and sizes != {1}:
            # transformers 5 tells packed examples apart only in batches of one row; with more, attention would cross.
            raise ValueError(
                "model.attention: flash_attention_2 needs train.rows_per_micro_batch and "
                "validation.rows_per_micro_batch of 1 (make rows longer instead), or use sdpa"
            )
        return self

    @property
    def run_dir(self) -> Path:
        """Return the folder of the run."""
        return self.run.output_dir / self.run.name

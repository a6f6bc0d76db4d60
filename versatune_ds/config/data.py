"""Define the data section of a recipe: where each domain's rows come from and how they become tokens.

The one idea: the rows have exactly one origin: a folder, named files a domain, or the built-in corpus.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag, field_validator, model_validator

from versatune_ds.config.section import ExpandedPath, ExpandedText, Section
from versatune_ds.config.typed_values import EmptySection
from versatune_ds.domains import by_domain_name, nearest_name


class HubDataset(Section):
    """Name a data set of the Hugging Face Hub, or a local folder laid out like one."""

    hub: ExpandedText = Field(min_length=1)
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


DataSource = Annotated[
    Annotated[ExpandedText, Tag("path")] | Annotated[HubDataset, Tag("hub")], Discriminator(_source_kind)
]


ROW_PARTS = ("messages", "tools", "system", "prompt", "context", "reasoning", "answer", "text")


class DomainFiles(Section):
    """Name the files of one domain."""

    train: tuple[DataSource, ...]
    """File, glob, folder (also one saved by `save_to_disk`) or `{hub: owner/name}` of training rows, or a list."""
    valid: tuple[DataSource, ...] | None = None
    """The same for held-out rows; without it `data.valid_fraction` of the training rows is held out. An empty list
    holds out nothing: the domain is trained on and not measured, so no signal of its own moves its weight."""
    columns: dict[str, str] | None = None
    """Part to column name, where the form of the rows is not recognised: prompt and answer, messages, or text;
    perhaps system, context, reasoning and tools beside them."""

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

    folder: ExpandedPath | None = None
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
    chat_template: ExpandedPath | None = None
    """Jinja file with a chat template; without it the tokenizer's own, and without that a built-in one."""
    valid_fraction: float = Field(default=0.02, gt=0, lt=0.5)
    """Share of rows held out, by content hash, for domains without `valid` files."""
    max_bad_rows: int | float = Field(default=0.01, ge=0)
    """Bad rows a domain may have: a count, or a fraction of its rows when below 1."""
    max_epochs_per_domain: float | None = Field(default=None, gt=0)
    """Passes over a domain's rows before its share goes to the others; no cap by default."""
    num_processes: int = Field(default=1, ge=1)
    """Processes that tokenise."""
    cache_dir: ExpandedPath | None = None
    """Folder of prepared shards; by default `output_dir`/.cache/shards."""

    @model_validator(mode="before")
    @classmethod
    def _empty_corpus_is_none_beside_others(cls, values: Any) -> Any:
        """Take `synthetic:` with nothing after it for the built-in corpus only where no other origin is given."""
        if not isinstance(values, dict) or not isinstance(values.get("synthetic"), EmptySection):
            return values
        has_another = any(values.get(key) is not None for key in ("folder", "domains"))
        return {key: value for key, value in values.items() if key != "synthetic" or not has_another}

    @field_validator("domains", mode="before")
    @classmethod
    def _have_names_of_one_form(cls, domains: Any) -> Any:
        """Write the same characters in the same way (Unicode NFC), so that a name is the same wherever it stands."""
        return by_domain_name(domains, what="data.domains") if isinstance(domains, dict) else domains

    @model_validator(mode="after")
    def _has_one_origin(self) -> DataConfig:
        """Check that exactly one origin of the rows is given."""
        given = [key for key in ("folder", "domains", "synthetic") if getattr(self, key) is not None]
        if len(given) != 1:
            found = f"both {' and '.join('data.' + key for key in given)}" if given else "none"
            raise ValueError(f"give exactly one of data.folder, data.domains and data.synthetic; found {found}")
        return self

"""Define the data section of a recipe: where each domain's examples come from and how they become tokens.

Examples have exactly one origin: a folder, files listed by domain, or the built-in corpus.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag, field_validator, model_validator

from versatune_ds.config.section import EmptySection, ExpandedPath, ExpandedPlace, ExpandedText, Section
from versatune_ds.domains import by_domain_name, nearest_name


class HubDataset(Section):
    """A data set of the Hugging Face Hub, or a local folder laid out like one."""

    hub: ExpandedText = Field(min_length=1)
    """Data set of the Hugging Face Hub, `owner/name`, or a folder that `datasets.load_dataset` reads."""
    config: str | None = None
    """Configuration of the data set, where it has several."""
    split: str = Field(default="train", pattern=r"^[^\[\]]+$")
    """Split to read, always all of it; slices such as `train[:10%]` are not supported."""
    revision: str | None = None
    """Commit, tag or branch of the data set. Give a commit to make the run repeatable."""


def _source_kind(source: Any) -> str:
    """Return the tag of a source: `hub` for a mapping, else `path`."""
    return "hub" if isinstance(source, (dict, HubDataset)) else "path"


DataSource = Annotated[
    Annotated[ExpandedText, Tag("path")] | Annotated[HubDataset, Tag("hub")], Discriminator(_source_kind)
]


EXAMPLE_PARTS = ("messages", "tools", "system", "prompt", "context", "reasoning", "answer", "text")


class DomainFiles(Section):
    """The files of one domain."""

    train: tuple[DataSource, ...]
    """Training examples: a file, a glob, a folder (also one saved by `save_to_disk`), `{hub: owner/name}`, or a list of
    these. Files, globs and folders may be remote (`s3://`, `gs://`, `hf://`; `https://` for files); they are fetched
    into the cache once."""
    valid: tuple[DataSource, ...] | None = None
    """Held-out examples, given like `train`. By default `data.valid_fraction` of the training examples is held out.
    With an empty list nothing is: the domain is trained on but not measured, so its own loss does not move its
    weight."""
    columns: dict[str, str] | None = None
    """Mapping from the parts of an example to column names, for data whose form is not recognised. Parts: prompt and
    answer, or messages, or text; optionally system, context, reasoning and tools."""
    description: str | None = Field(default=None, min_length=1)
    """What is in the domain, in a few words or sentences, for `versatune detect`."""

    @field_validator("train", "valid", mode="before")
    @classmethod
    def _as_list(cls, sources: Any) -> Any:
        """Accept one source without a list around it."""
        return (sources,) if isinstance(sources, (str, dict, HubDataset)) else sources

    @field_validator("columns")
    @classmethod
    def _make_an_example(cls, columns: dict[str, str] | None) -> dict[str, str] | None:
        """Check that the mapped parts are known and enough for an example."""
        for part in columns or ():
            if part not in EXAMPLE_PARTS:
                raise ValueError(f"unknown part {part!r}; {nearest_name(part, EXAMPLE_PARTS)}")
        parts = set(columns or EXAMPLE_PARTS)
        if not (parts >= {"prompt", "answer"} or parts & {"messages", "text"}):
            raise ValueError("an example needs prompt and answer, or messages, or text")
        return columns


class SyntheticCorpus(Section):
    """The built-in corpus: six domains of made-up questions and answers."""

    num_rows: int | dict[str, int] | None = None
    """Training examples of each domain: one number or a mapping; by default the corpus's own sizes."""
    num_valid_rows: int = Field(default=150, ge=1)
    """Held-out examples of each domain."""
    num_test_rows: int = Field(default=150, ge=1)
    """Test examples of each domain."""
    seed: int = Field(default=0, ge=0)
    """Seed of the corpus; another seed gives other questions."""


def _domain_in_full(files: Any) -> Any:
    """Return a domain with its training files under `train`, where it is written as these alone.

    `law.jsonl`, a list of sources, or `{hub: owner/name}`, which may stand beside the domain's other keys.
    """
    if isinstance(files, (str, list, tuple)):
        return {"train": files}
    if isinstance(files, dict) and "hub" in files and "train" not in files:
        own = {key: value for key, value in files.items() if key in DomainFiles.model_fields}
        return {**own, "train": {key: value for key, value in files.items() if key not in own}}
    return files


class DataConfig(Section):
    """Where each domain's examples come from, and how they become tokens."""

    folder: ExpandedPlace | None = None
    """Folder with train/DOMAIN.jsonl and, optionally, valid/DOMAIN.jsonl; every file or folder in train/ is a
    domain. It may lie on a remote store: `s3://`, `gs://`, `hf://`."""
    domains: dict[str, DomainFiles] | None = None
    """Mapping from domain name to files. The domains keep this order everywhere. A domain with training files alone may
    be written as these: `law: law.jsonl`, a list of paths, or `{hub: owner/name}`."""
    synthetic: SyntheticCorpus | None = None
    """Use the built-in corpus, to try things without data; `data.synthetic={}` takes the defaults."""
    row_tokens: int = Field(default=512, ge=8)
    """Context: the length of a packed row, in tokens. Raise it if many examples are longer."""
    loss_on: Literal["assistant", "all"] = "assistant"
    """Which tokens bear loss: the assistant's turns, or all tokens."""
    long_examples: Literal["truncate", "split"] = "truncate"
    """What to do with an example longer than a row: cut off its end, or split it into several. Both are counted."""
    chat_template: ExpandedPath | None = None
    """Jinja file with a chat template. By default the tokenizer's own, or a built-in one where it has none."""
    valid_fraction: float = Field(default=0.02, gt=0, lt=0.5)
    """Share of the training examples to hold out, chosen by a hash of their content, for domains without `valid`."""
    max_bad_rows: int | float = Field(default=0.01, ge=0)
    """How many unreadable or unusable rows (lines of the files) a domain may have before the run is refused: a count,
    or a fraction of its rows when below 1. They are skipped and listed in bad_rows.jsonl."""
    max_epochs_per_domain: float | None = Field(default=None, gt=0)
    """Passes over a domain's examples after which its share goes to the other domains; by default there is no limit."""
    num_processes: int = Field(default=1, ge=1)
    """Processes that tokenise."""
    cache_dir: ExpandedPath | None = None
    """Folder of prepared data, shared by all runs; by default `output_dir`/.cache/shards."""

    @model_validator(mode="before")
    @classmethod
    def _empty_corpus_is_none_beside_others(cls, values: Any) -> Any:
        """Read an empty `synthetic:` as the built-in corpus only if no other origin is given."""
        if not isinstance(values, dict) or not isinstance(values.get("synthetic"), EmptySection):
            return values
        has_another = any(values.get(key) is not None for key in ("folder", "domains"))
        return {key: value for key, value in values.items() if key != "synthetic" or not has_another}

    @field_validator("domains", mode="before")
    @classmethod
    def _have_names_of_one_form(cls, domains: Any) -> Any:
        """Normalise names to Unicode NFC, so that a name is the same wherever it is written, and read shorthands."""
        if not isinstance(domains, dict):
            return domains
        named = by_domain_name(domains, what="data.domains")
        return {name: _domain_in_full(files) for name, files in named.items()}

    @model_validator(mode="after")
    def _has_one_origin(self) -> DataConfig:
        given = [key for key in ("folder", "domains", "synthetic") if getattr(self, key) is not None]
        if len(given) != 1:
            found = f"both {' and '.join('data.' + key for key in given)}" if given else "none"
            way_out = f"; leave out all but one, as in data.{given[-1]}=null" if given else ""
            raise ValueError(
                f"give exactly one of data.folder, data.domains and data.synthetic; found {found}{way_out}"
            )
        return self

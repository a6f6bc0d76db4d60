"""The recipe being checked, and what several checks need to know about it.

Tokenizer, files and sampled rows are found once, by the first check that asks. If that fails, all checks get the same
error, so that the report lists it once and lists what could not be checked because of it.
"""

from __future__ import annotations

import contextlib
import functools
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

import numpy as np

from versatune_ds.config import DomainFiles, RunConfig
from versatune_ds.data.encoding.loss_spans import TemplateMismatchError, render_example
from versatune_ds.data.encoding.template_abilities import TemplateAbilities, probe_template
from versatune_ds.data.encoding.templates import choose_template
from versatune_ds.data.encoding.tokenizer import load_tokenizer, train_tokenizer
from versatune_ds.data.prepare.encode_records import EncodeSettings, RecordEncoder
from versatune_ds.data.sources.domain_files import domain_files, key_of, texts_of_record
from versatune_ds.distributed.gpus import asks_for_gpus, is_cpu_meant
from versatune_ds.domains import DomainSet
from versatune_ds.preflight.remote_sample import sample_sources
from versatune_ds.preflight.sample import FileSample
from versatune_ds.training.prepared_data import cache_folder, load_or_train_tokenizer
from versatune_ds.training.start_checks import StartCheckInput

_CONVERSATION = ({"role": "user", "content": "a question"}, {"role": "assistant", "content": "an answer"})
_RECORDS_PER_SPLIT = 400
_MAX_BYTES_FOR_TOKENIZER = 32 << 20
"""Data up to this size are read completely to train the tokenizer that the run will have."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckRequest:
    """Where the run that is checked is to take place, as the command line and the environment state it.

    Attributes:
        nodes: Machines; None takes the recipe's or 1.
        gpus_per_node: Processes a machine; None takes the recipe's, or the GPUs of this machine, or 1.
        gpu_memory_gib: Memory of one GPU; None takes that of this machine's GPU, if it has one.
        environ: The environment's variables.
        renders_prompts: Whether examples are complete, with the prompt of generation beside each.
    """

    nodes: int | None = None
    gpus_per_node: int | None = None
    gpu_memory_gib: float | None = None
    environ: Mapping[str, str] = field(default_factory=dict)
    renders_prompts: bool = False

    def __post_init__(self) -> None:
        """Raise ValueError for a number that is not positive."""
        for option in ("nodes", "gpus_per_node", "gpu_memory_gib"):
            value = getattr(self, option)
            if value is not None and value <= 0:
                raise ValueError(f"--{option.replace('_', '-')}={value}: expected a positive number")


@dataclass(frozen=True, slots=True, kw_only=True)
class DomainSample:
    """What was sampled of one domain's files of one split."""

    domain: str
    split: str
    key: str
    files: tuple[FileSample, ...]

    @property
    def num_rows(self) -> float:
        """Return the records of the files, an estimate where they are large."""
        return sum(file.num_rows for file in self.files)


Found = TypeVar("Found")


def once(find: Callable[..., Found]) -> Callable[..., Found]:
    """Make a function of a subject, and perhaps of names, run once for each; later calls return or raise the same."""

    @functools.wraps(find)
    def found(subject: Subject, *names: str) -> Found:
        key = (find.__name__, *names)
        if key not in subject._found:
            try:
                subject._found[key] = find(subject, *names)
            except Exception as error:
                subject._found[key] = error
        if isinstance(subject._found[key], Exception):
            raise subject._found[key]
        return subject._found[key]

    return found


class Subject:
    """The recipe being checked, with everything about it that several checks ask for.

    Args:
        config: The recipe.
        request: Where it is to run.
        num_gpus_here: GPUs of this machine.
    """

    def __init__(self, config: RunConfig, request: CheckRequest, *, num_gpus_here: int) -> None:
        self.config = config
        self.request = request
        self.num_gpus_here = num_gpus_here
        slurm = config.slurm
        is_asked_of_slurm = slurm.processes_per_node is not None or slurm.gpus_per_node is not None
        self.num_nodes = request.nodes or slurm.nodes
        self.gpus_per_node = request.gpus_per_node or (
            slurm.num_processes_per_node if is_asked_of_slurm else max(num_gpus_here, 1)
        )
        self._found: dict[tuple[str, ...], Any] = {}  # by `once`

    @property
    def world_size(self) -> int:
        """Return the processes of the run."""
        return self.num_nodes * self.gpus_per_node

    @property
    def start(self) -> StartCheckInput:
        """Return the start of this recipe's processes, as the start checks see it."""
        request, slurm = self.request, self.config.slurm
        is_queued = slurm.partition is not None or "SBATCH_PARTITION" in request.environ
        is_here = self.num_nodes == 1 and not is_queued
        device_type = "cpu" if is_here else None
        if request.gpu_memory_gib:
            device_type = "cuda"
        elif is_cpu_meant(request.environ):
            device_type = "cpu"
        elif self.num_gpus_here or slurm.gpus_per_node or asks_for_gpus(slurm, request.environ):
            device_type = "cuda"
        given = request.gpus_per_node
        return StartCheckInput(
            config=self.config,
            stage="check",
            num_processes=self.world_size,
            device_type=device_type,
            is_here=is_here,
            gpus_asked_by=None if given is None else f"--gpus-per-node={given}",
            environ=request.environ,
        )

    @property
    @once
    def files_of_domain(self) -> dict[str, DomainFiles]:
        """Return every domain's files; the built-in corpus is written if it is requested."""
        return domain_files(self.config.data, cache_dir=cache_folder(self.config))

    @property
    @once
    def domain_set(self) -> DomainSet:
        """Return the run's domains."""
        return DomainSet(tuple(self.files_of_domain))

    @once
    def sample(self, domain: str, split: str) -> DomainSample:
        """Read some records of each file of a domain's split, none where it has no files of its own."""
        sources = getattr(self.files_of_domain[domain], split)
        key = key_of(self.config.data, domain=domain, split=split)
        cache_dir = cache_folder(self.config)
        files = sample_sources(sources or (), key=key, cache_dir=cache_dir, num_records=_RECORDS_PER_SPLIT)
        return DomainSample(domain=domain, split=split, key=key, files=files)

    def readable_domains(self) -> list[str]:
        """Return the domains whose training files were found and sampled; the others are reported by their check."""
        names = []
        for name in self.files_of_domain:
            with contextlib.suppress(ValueError):
                if self.sample(name, "train").files:
                    names.append(name)
        return names

    @property
    def num_bytes(self) -> int:
        """Return the size of all domains' files that were found."""
        return sum(file.num_bytes for name in self.readable_domains() for file in self.readable_files(name))

    def readable_files(self, domain: str) -> list[FileSample]:
        """Return the sampled files of both splits of a domain, without those that could not be read."""
        files: list[FileSample] = []
        for split in ("train", "valid"):
            with contextlib.suppress(ValueError):
                files += self.sample(domain, split).files
        return files

    @property
    def has_own_tokenizer(self) -> bool:
        """Return whether the tokenizer is the one the run will have, not a stand-in trained on sampled records."""
        names = self.config.model.tokenizer or self.config.model.name_or_path
        is_all_readable = len(self.readable_domains()) == len(self.files_of_domain)
        return bool(names) or (is_all_readable and self.num_bytes <= _MAX_BYTES_FOR_TOKENIZER)

    @property
    @once
    def tokenizer(self) -> Any:
        """Return the run's tokenizer; on large data not trained yet, a stand-in trained on the sampled records."""
        if self.config.model.tokenizer or self.config.model.name_or_path or self.has_own_tokenizer:
            return load_or_train_tokenizer(self.config)
        files = [file for name in self.readable_domains() for file in self.sample(name, "train").files]
        texts = [text for file in files for record in file.records for text in texts_of_record(record)]
        with tempfile.TemporaryDirectory() as folder:
            train_tokenizer(texts, vocab_size=self.config.model.tokenizer_vocab_size, folder=folder)
            return load_tokenizer(folder)

    @property
    def template_key(self) -> str:
        """Return the key that the chat template comes from."""
        return "data.chat_template" if self.config.data.chat_template else "model.tokenizer"

    @property
    @once
    def template(self) -> str:
        """Return the chat template's text; raise ValueError if it cannot render a question and an answer."""
        template = choose_template(self.tokenizer, path=self.config.data.chat_template)
        try:
            render_example(
                list(_CONVERSATION), tokenizer=self.tokenizer, template=template, loss_on=self.config.data.loss_on
            )
        except TemplateMismatchError as error:
            reason = " ".join(str(error).split()).replace("; ", ", ")  # "; " is only between the problem and what to do
            raise ValueError(f"{self.template_key}: {reason}; fix it, or give data.chat_template=FILE") from None
        return template

    @property
    @once
    def _abilities(self) -> TemplateAbilities:
        return probe_template(self.template, tokenizer=self.tokenizer)

    def encoder(self, domain: str) -> RecordEncoder:
        """Return what turns a domain's records into tokens, the same as when data are prepared."""
        data = self.config.data
        return RecordEncoder(
            tokenizer=self.tokenizer,
            template=self.template,
            abilities=self._abilities,
            settings=EncodeSettings(
                row_tokens=data.row_tokens,
                loss_on=data.loss_on,
                long_examples=data.long_examples,
                columns=self.files_of_domain[domain].columns,
            ),
        )

    @property
    def num_rows_K(self) -> np.ndarray:
        """Return the training records of every domain, estimated where files are large, float64 [K]."""
        return np.array([max(self.sample(name, "train").num_rows, 1.0) for name in self.domain_set])

    @property
    def vocab_size(self) -> int:
        """Return the tokenizer's length; the most it can have where it is still to be trained on large data."""
        return len(self.tokenizer) if self.has_own_tokenizer else self.config.model.tokenizer_vocab_size

    @property
    @once
    def ds_config(self) -> dict[str, Any]:
        """Return DeepSpeed's config."""
        return self.start.ds_config

"""Settings of the data in other tools."""

from __future__ import annotations

from versatune_ds.config.tool_names.known_name import KnownName
from versatune_ds.mixture.policies.fixed import CONSTANT, PROPORTIONAL

DATA_NAMES = (
    KnownName(
        keys=("data.domains",),
        how="each domain's files, paths or {hub: owner/name}; or data.folder with train/DOMAIN.jsonl",
        example=("data.domains={law: law.jsonl, code: code.jsonl}",),
        transformers=("dataset_name", "train_file", "dataset_train_split"),
        llama_factory=("dataset", "dataset_dir"),
        axolotl=("datasets",),
        others=("data_path", "train_files", "data_files", "train_data", "train_dataset"),
    ),
    KnownName(
        keys=("data.domains.DOMAIN.valid",),
        how="held-out files, by domain; without them data.valid_fraction of the training examples is held out",
        example=("data.domains.law.train=law.jsonl", "data.domains.law.valid=law_valid.jsonl"),
        transformers=("validation_file", "eval_dataset", "dataset_test_split"),
        axolotl=("test_datasets",),
        others=("valid_files", "val_data"),
    ),
    KnownName(
        keys=("data.valid_fraction",),
        how="a share of each domain; validation.max_examples_per_domain bounds how many are measured",
        example=("data.valid_fraction=0.02",),
        llama_factory=("val_size",),
        axolotl=("val_set_size",),
        others=("test_size", "validation_split"),
    ),
    KnownName(
        keys=("data.domains.DOMAIN.columns",),
        how="a mapping from parts of an example to columns; the usual column names are recognised without it",
        example=("data.domains.law.train=law.jsonl", "data.domains.law.columns={text: body}"),
        transformers=("dataset_text_field",),
        axolotl=("field_messages", "field_instruction", "field_output"),
        others=("text_column", "text_field"),
    ),
    KnownName(
        keys=("data.chat_template",),
        how="a Jinja file; names of templates such as chatml are unknown, and the tokenizer's own is the default",
        example=("data.chat_template=template.jinja",),
        transformers=("chat_template", "chat_template_path"),
        llama_factory=("template",),
        axolotl=("chat_template_jinja",),
    ),
    KnownName(
        keys=("data.loss_on",),
        how="true is all, false is assistant (the default)",
        example=("data.loss_on=all",),
        llama_factory=("train_on_prompt",),
        axolotl=("train_on_inputs",),
    ),
    KnownName(
        keys=("data.loss_on",),
        how="true is assistant (the default), false is all",
        example=("data.loss_on=assistant",),
        transformers=("assistant_only_loss", "completion_only_loss"),
    ),
    KnownName(
        how="rows are always packed, and neither attention nor positions cross from one example to the next",
        transformers=("packing", "eval_packing", "padding_free", "group_by_length"),
        llama_factory=("neat_packing",),
        axolotl=("sample_packing", "eval_sample_packing", "pad_to_sequence_len", "multipack_real_batches"),
    ),
    KnownName(
        keys=("mixture.prior",),
        how=f"a mapping from domain to weight, the weights of step 0; mixture.policy={CONSTANT.name} keeps them",
        example=("mixture.prior={arithmetic: 0.7, code: 0.3}", f"mixture.policy={CONSTANT.name}"),
        llama_factory=("interleave_probs",),
        others=("probabilities", "sampling_probabilities", "mixture_weights", "domain_weights", "dataset_weights"),
    ),
    KnownName(
        keys=("mixture.policy",),
        how=f"concat is {PROPORTIONAL.name}, interleave is {CONSTANT.name} with mixture.prior; the default policy "
        "adapts the weights, and a short domain is repeated (data.max_epochs_per_domain limits it)",
        example=(f"mixture.policy={PROPORTIONAL.name}",),
        llama_factory=("mix_strategy",),
        others=("stopping_strategy",),
    ),
    KnownName(
        keys=("data.num_processes",),
        example=("data.num_processes=8",),
        transformers=("dataset_num_proc",),
        llama_factory=("preprocessing_num_workers",),
        axolotl=("dataset_processes",),
        others=("num_proc",),
    ),
    KnownName(
        how="one thread of each process prepares batches ahead, without worker processes; data.num_processes is for "
        "tokenising",
        transformers=("dataloader_num_workers", "dataloader_prefetch_factor", "dataloader_pin_memory"),
        others=("num_workers",),
    ),
    KnownName(
        keys=("data.cache_dir",),
        how="folder of prepared data; changed files are prepared again by themselves",
        example=("data.cache_dir=cache",),
        llama_factory=("tokenized_path", "overwrite_cache"),
        axolotl=("dataset_prepared_path",),
    ),
    KnownName(
        how="data.domains.DOMAIN.train takes files, all of each; write a shorter file, or lower train.steps",
        llama_factory=("max_samples",),
        others=("max_train_samples",),
    ),
    KnownName(
        how="the order of the data follows from run.seed by a permutation; every pass has another one",
        transformers=("shuffle_dataset", "data_seed"),
        axolotl=("shuffle_merged_datasets",),
        others=("shuffle",),
    ),
)

"""Draw sequences from a base model: what it writes without a prompt.

Batch b is a function of (model, settings, b) alone: its random numbers come from a seed made of the sampling seed and
b. So it does not matter which process draws it, or after how many restarts.

A sequence starts as `sequence_start.py` describes and ends with the first end token. Not covered: a model never
trained on what comes at the start, such as one fine-tuned on answers alone after a beginning token, has no distribution
there worth sampling.
"""

from __future__ import annotations

import hashlib
from typing import Any

import torch
from transformers import GenerationConfig

from versatune_ds.config import RunConfig, SamplingConfig
from versatune_ds.data.encoding.templates import choose_template
from versatune_ds.distributed import World
from versatune_ds.engine.sharded_model import load_model
from versatune_ds.knowledge.sequence_start import sequence_start
from versatune_ds.knowledge.sequences import DrawnSequence, repeated_share
from versatune_ds.launch.process_pool import device_of
from versatune_ds.model.attention import with_dense_attention
from versatune_ds.model.sizes import sizes_of
from versatune_ds.training.end_tokens import stops_of
from versatune_ds.training.prepared_data import load_or_train_tokenizer
from versatune_ds.training.worker import set_threads


class SequenceGenerator:
    """Draw batches of sequences from a transformers model, which is on its device already.

    With `is_in_step` the weights are divided over ranks, and a rank whose sequences have ended makes further passes
    until those of all have. Communication: then, one flag a token.

    Raises:
        ValueError: If the tokenizer has no token to start from, or the model no room for the sequences.
    """

    def __init__(
        self,
        causal_lm: Any,
        *,
        tokenizer: Any,
        sampling: SamplingConfig,
        template: str = "",
        is_in_step: bool = False,
    ) -> None:
        self._is_in_step = is_in_step
        self._causal_lm = causal_lm.eval()
        self._tokenizer = tokenizer
        self._sampling = sampling
        start = sequence_start(tokenizer, prefix=sampling.prefix, template=template)
        self._start_ids, self._num_hidden = start.token_ids, start.num_hidden
        self._end_ids = sorted(stops_of(causal_lm.generation_config, tokenizer))
        room = sizes_of(causal_lm.config).max_positions
        if room is not None and len(self._start_ids) + sampling.max_new_tokens > room:
            raise ValueError(
                f"detect.sampling.max_new_tokens: {sampling.max_new_tokens} after {len(self._start_ids)} to start "
                f"with, but the model has {room} positions; lower it"
            )
        # generate() fills what a call leaves at its default from the model's own file (top_k=20 in many): the
        # sequences would then come from another distribution, so the model's is replaced and not overridden.
        pad_id = next((i for i in (tokenizer.pad_token_id, *self._end_ids) if i is not None), 0)  # is cut off again
        causal_lm.generation_config = generation_settings(sampling, end_ids=self._end_ids, pad_id=pad_id)

    @torch.inference_mode()
    def draw(self, batch: int) -> list[DrawnSequence]:
        """Return the sequences of one batch."""
        device = self._causal_lm.device
        rows = torch.tensor([self._start_ids] * self._sampling.sequences_per_batch, device=device)
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            torch.manual_seed(batch_seed(self._sampling.seed, batch))
            drawn = self._causal_lm.generate(rows, attention_mask=torch.ones_like(rows), synced_gpus=self._is_in_step)
        return [self._sequence(row) for row in drawn[:, rows.shape[1] :].tolist()]

    def _sequence(self, drawn_ids: list[int]) -> DrawnSequence:
        """Return the drawn tokens up to the first end token as a sequence."""
        end = next((i for i, token_id in enumerate(drawn_ids) if token_id in self._end_ids), None)
        kept = drawn_ids if end is None else drawn_ids[: end + 1]
        written = [*self._start_ids[self._num_hidden :], *kept]
        return DrawnSequence(
            text=self._tokenizer.decode(written, skip_special_tokens=True),
            num_tokens=1 + len(written),
            is_cut=end is None,
            repeated_share=repeated_share(kept),
        )


def load_generator(config: RunConfig, world: World, *, is_sharded: bool = False) -> SequenceGenerator:
    """Load a recipe's saved model on this process's device, ready to draw; its part of it where it is sharded.

    Raises:
        ValueError: If the model or its tokenizer cannot be loaded.
    """
    set_threads()
    tokenizer = load_or_train_tokenizer(config)
    causal_lm = load_model(
        config.model,
        train=config.train,
        vocab_size=len(tokenizer),
        device=device_of(world),
        is_sharded=is_sharded,
        wrap=with_dense_attention,  # generation has a cache
    )
    template = choose_template(tokenizer, path=config.data.chat_template)
    return SequenceGenerator(
        causal_lm,
        tokenizer=tokenizer,
        sampling=config.detect.sampling,
        template=template,
        is_in_step=is_sharded,
    )


def generation_settings(sampling: SamplingConfig, *, end_ids: list[int], pad_id: int) -> GenerationConfig:
    """Return transformers' settings for drawing from the model's own distribution, changed by `sampling` alone."""
    return GenerationConfig(
        do_sample=True,
        num_beams=1,
        max_new_tokens=sampling.max_new_tokens,
        temperature=sampling.temperature,
        top_p=sampling.top_p,
        top_k=0,
        repetition_penalty=sampling.repetition_penalty,
        eos_token_id=end_ids or None,
        pad_token_id=pad_id,
        use_cache=True,
    )


def batch_seed(seed: int, batch: int) -> int:
    """Return the seed of one batch, apart from every other's."""
    return int.from_bytes(hashlib.blake2b(f"{seed}/{batch}".encode(), digest_size=8).digest(), "big") >> 1

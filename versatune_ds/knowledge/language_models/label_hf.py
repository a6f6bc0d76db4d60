"""Ask a local instruct model for the domains of texts: how likely is each domain's name as its answer.

Nothing is generated, so there is no answer that cannot be read. The names' likelihoods, divided by their sum, are the
label. A name's likelihood is the product over its tokens and the end of the answer.

Not covered: a model's bias for a name, whatever the text. Descriptions help (`detect.descriptions`).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch

from versatune_ds.config import LocalLabellerConfig, ModelConfig
from versatune_ds.data.encoding.templates import choose_template
from versatune_ds.data.encoding.tokenizer import load_tokenizer, render_conversation
from versatune_ds.distributed import World
from versatune_ds.knowledge.base_model import find_base_model
from versatune_ds.knowledge.language_models.questions import LabelStore, Question
from versatune_ds.launch.process_pool import device_of
from versatune_ds.model.attention import use_dense_attention
from versatune_ds.model.build import build_causal_lm
from versatune_ds.monitor.progress_lines import with_progress
from versatune_ds.training.worker import set_threads

_ANSWER = "Answer with the name of one domain and nothing else."


class LocalLabeller:
    """Label texts with a local model; labels are stored in `folder`, digests of large files in `cache_dir`.

    Raises:
        ValueError: If the model or its tokenizer cannot be loaded, or it has no chat template.
    """

    def __init__(self, settings: LocalLabellerConfig, *, question: Question, folder: Path, cache_dir: Path) -> None:
        self._settings = settings
        self._question = question
        set_threads()
        try:
            model = ModelConfig(name_or_path=settings.name_or_path)
            self._digest = find_base_model(model, cache_dir=cache_dir).digest
            self._tokenizer = load_tokenizer(settings.name_or_path)
            causal_lm = build_causal_lm(
                model, precision=settings.precision, vocab_size=len(self._tokenizer), special_ids={}
            )
        except ValueError as error:
            raise ValueError(f"detect.hf.name_or_path: {str(error).partition(': ')[2]}") from None
        use_dense_attention(causal_lm)  # its rows are padded, not packed
        self._causal_lm = causal_lm.to(device_of(World())).eval()
        self._template = choose_template(self._tokenizer)
        self._names_ids = [self._ids(name) + self._end_ids() for name in question.domain_set]
        identity = (self._digest, settings.precision, self._prompt(""), str(question.max_characters))
        self._store = LabelStore(folder / "labels-hf.jsonl", domain_set=question.domain_set, identity=identity)

    def label(self, texts: list[str]) -> np.ndarray:
        """Return the labels, float64 [N, K]."""
        missing = self._store.missing(texts)
        for text in with_progress(missing, num_items=len(missing), what="labelled %s sequences"):
            label_K = self._label(text)
            self._store.add(text, label_K, answer=self._question.domain_set.names[int(label_K.argmax())])
        return self._store.labels(texts)

    def describe(self) -> dict[str, Any]:
        """Return what prior.json records of this labeller."""
        return {
            "name": "hf",
            "model": self._settings.name_or_path,
            "digest": self._digest,
            "precision": self._settings.precision,
        }

    @torch.inference_mode()
    def _label(self, text: str) -> np.ndarray:
        """Return one label: a forward pass over the question followed by each name, all names in one batch.

        Rows are padded at the end, which a causal model's earlier positions do not see. With a prompt of 5 tokens
        and the names (7 8 9) and (7 6), the logits at positions 4, 5, 6 are those of the names' tokens.
        """
        prompt_ids = self._ids(self._prompt(text))
        width = max(map(len, self._names_ids))
        rows = torch.tensor([prompt_ids + ids + [0] * (width - len(ids)) for ids in self._names_ids])
        logits = self._causal_lm(rows.to(self._causal_lm.device), use_cache=False).logits
        log_p_KTV = logits[:, len(prompt_ids) - 1 : -1].double().log_softmax(-1).cpu()
        scores_K = [
            float(sum(log_p_KTV[k, place, token_id] for place, token_id in enumerate(ids)))
            for k, ids in enumerate(self._names_ids)
        ]
        return torch.tensor(scores_K, dtype=torch.float64).softmax(0).numpy()

    def _prompt(self, text: str) -> str:
        """Return the question as the model's chat template writes it, up to where the answer begins."""
        message = {"role": "user", "content": self._question.about(text, answer=_ANSWER)}
        rendered, _ = render_conversation(
            [message], tokenizer=self._tokenizer, template=self._template, add_generation_prompt=True
        )
        return rendered

    def _ids(self, text: str) -> list[int]:
        return self._tokenizer.encode(text, add_special_tokens=False)

    def _end_ids(self) -> list[int]:
        """Return the token that ends an answer, without which "law" would be at least as likely as "law of the sea"."""
        end = self._tokenizer.eos_token_id
        return [] if end is None else [end]

"""Questions and signals of a run whose ranks share rows take complete rows on each rank, and find the same numbers."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from one_batch import micro_batch
from ranks import run_ranks
from tiny_models import A, B, C, build_arguments, pack

from versatune_ds.data.row_slices import row_share, slice_batch
from versatune_ds.domains import DomainSet
from versatune_ds.evaluation import while_training
from versatune_ds.evaluation.choices import ChoiceSet
from versatune_ds.evaluation.questions import Question
from versatune_ds.evaluation.while_training import TrainingTasks
from versatune_ds.mixture.statistics import ExampleLosses
from versatune_ds.model.build import build_causal_lm
from versatune_ds.model.domain_model import DomainModel, model_inputs
from versatune_ds.model.sequence_parallel import split_attention
from versatune_ds.training.signal_function import OwnSignal

DOMAINS = DomainSet(("law", "code"))
TEXTS = [A, C, [*B, *A], [*C, *B]]
HELD_OUT = ExampleLosses(loss_sum_E=np.ones(2), num_loss_tokens_E=np.ones(2), domain_ids_E=np.arange(2), num_domains=2)


class Words:
    """Stand-in for a tokenizer."""

    pad_token_id, eos_token_id, all_special_ids, added_tokens_decoder = 0, None, (), {}

    def decode(self, ids, **_):
        return " ".join(map(str, ids))


def loss_of_texts(context):
    """Return the mean loss of two texts a domain; the ranks share the texts."""
    sums_K = np.zeros(2)
    for i in range(context.rank, len(TEXTS), context.world_size):
        ids = torch.tensor([TEXTS[i]])
        sums_K[i % 2] += float(context.model(input_ids=ids, labels=ids).loss) / 2
    return dict(zip(context.domain_names, context.sum_over_ranks(sums_K), strict=True))


def tasks_for(world):
    """Return five multiple-choice questions and five written answers, of two domains."""
    options = [(np.array([*TEXTS[q % 4][:4], 3 + q + o, 5]), np.array([0, 0, 0, 0, 1, 1]) > 0)
               for q in range(5) for o in range(2)]  # fmt: skip
    choices = ChoiceSet(
        domain_set=DOMAINS, options=tuple(options), question_C=np.repeat(np.arange(5), 2), num_bytes_C=np.ones(10),
        answer_Q=np.arange(0, 10, 2), domain_id_Q=np.array([0, 1, 0, 1, 0]),
    )  # fmt: skip
    exact = tuple(
        Question(domain_id=q % 2, prompt_ids=np.array(TEXTS[q % 4][: 5 + q]), answer_ids=np.arange(3)) for q in range(5)
    )
    return TrainingTasks(
        choices=choices, exact=exact, domain_set=DOMAINS, tokenizer=Words(), world=world, questions_per_batch=1,
        budget_seconds=None, seed=0,
    )  # fmt: skip


def found_with(num_slices, world, monkeypatch):
    """Return what is asked, the texts that are written, the signal, and the losses of slices before and after."""
    causal_lm = build_causal_lm(**build_arguments("llama"))
    group = split_attention(causal_lm, wanted="auto", num_slices=num_slices, world=world)
    model = DomainModel(causal_lm, num_domains=2, sequence_group=group).eval()
    share = row_share(rank=world.rank % num_slices, world_size=num_slices, num_slices=num_slices)
    inputs = model_inputs(
        slice_batch(micro_batch([pack([A, B, C])], num_loss_tokens_global=1), share), device=torch.device("cpu")
    )
    engine = SimpleNamespace(module=model, eval=model.eval)
    engine = SimpleNamespace(deepspeed_engine=engine, world=world, device=torch.device("cpu"))
    scored, written = [], []
    losses_of, text_of = while_training.losses_of_questions, while_training.answer_greedily
    monkeypatch.setattr(
        while_training, "losses_of_questions", lambda *given: scored.append(losses_of(*given)) or scored[-1]
    )
    monkeypatch.setattr(
        while_training, "answer_greedily", lambda *given, **how: written.append(text_of(*given, **how)) or written[-1]
    )
    with torch.no_grad():
        before = model(**inputs).loss_sum_K.tolist()
        metrics = tasks_for(world)(engine)
        signal = OwnSignal(name="my:signal", function=loss_of_texts, domain_set=DOMAINS, num_steps=1, tokenizer=None)
        losses = signal.call(engine, HELD_OUT, step=0)
        after = model(**inputs).loss_sum_K.tolist()
    monkeypatch.undo()
    return {"metrics": metrics, "scored": scored, "written": written, "signal": losses, "slices": (before, after)}


def test_under_sequence_parallel_questions_and_signals_of_ones_own_find_the_same_on_1_2_and_4_slices(
    tmp_path, monkeypatch
):
    found = run_ranks(
        lambda world: {n: found_with(n, world, monkeypatch) for n in (1, 2, 4)}, world_size=4, folder=tmp_path
    )
    for rank in found:
        expected = rank[1]
        assert expected["metrics"]["task/choices/num_questions"] == expected["metrics"]["task/exact/num_questions"] == 5
        assert min(expected["signal"].values()) > 1
        for n in (2, 4):
            assert rank[n]["metrics"] == expected["metrics"]
            assert rank[n]["written"] == expected["written"]
            assert rank[n]["signal"] == pytest.approx(expected["signal"], rel=1e-5)
            for (numbers, losses), (same_numbers, same_losses) in zip(
                expected["scored"], rank[n]["scored"], strict=True
            ):
                assert numbers == same_numbers
                np.testing.assert_allclose(same_losses, losses, rtol=1e-5)
            before, after = rank[n]["slices"]
            assert after == before  # rows in slices are computed as before

"""Ask a model questions while it trains: multiple choice and written answers, within a time budget.

Every rank asks every world_size-th question, and one sum over ranks gives all of them the result. A rank that has spent
its budget begins no further batch, and then waits for the others.

Under ZeRO-3 every forward pass gathers weights from all ranks, so the ranks ask in step: equally many batches of each
kind in the same order (`equal_batches.py`), and the budget is spent for all once it is for one.

Shape legend: **Q** questions of one kind, **C** options of multiple-choice questions.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from versatune_ds.data.encoding.templates import choose_template
from versatune_ds.distributed import World, any_rank, from_rank_zero, sum_over_ranks
from versatune_ds.domains import DomainSet
from versatune_ds.engine.ds_settings import zero_stage
from versatune_ds.engine.engine import Engine
from versatune_ds.evaluation.choices import ChoiceQuestion, ChoiceSet, encode_choices, read_choices
from versatune_ds.evaluation.equal_batches import batches_of, num_batches_of_every_rank
from versatune_ds.evaluation.option_losses import check_shared_tokens, losses_of_questions
from versatune_ds.evaluation.questions import Question, answer_greedily, find_questions, text_of_answer
from versatune_ds.training.prepared_data import RunSetup
from versatune_ds.training.run import TaskEvaluation

logger = logging.getLogger(__name__)

Kind = Literal["choices", "exact"]

_KEY = "validation.tasks.choices"


def tasks_of(setup: RunSetup) -> TaskEvaluation | None:
    """Return what asks the questions of `validation.tasks`, None where a recipe has none.

    Communication: rank 0 reads the files; their questions are broadcast.

    Raises:
        ValueError: On every rank, if a file or a question is not as expected, or no held-out example has an answer.
    """
    config = setup.config
    settings = config.validation.tasks
    if settings is None:
        return None
    found = from_rank_zero(
        lambda: {
            name: [(question.question, question.choices, question.answer) for question in asked[: settings.limit]]
            for name, asked in (read_choices(settings.choices, key=_KEY) if settings.choices else {}).items()
        },
        setup.world,
    )
    questions = {
        name: [ChoiceQuestion(question=text, choices=tuple(choices), answer=answer) for text, choices, answer in asked]
        for name, asked in found.items()
    }
    row_tokens = config.data.row_tokens
    choices = None
    if questions:
        template = choose_template(setup.tokenizer, path=config.data.chat_template)
        choices = encode_choices(
            questions, tokenizer=setup.tokenizer, template=template, row_tokens=row_tokens, key=_KEY
        )
        if zero_stage(setup.ds_config) == 3:
            check_shared_tokens(choices, key=_KEY, needed_by="ZeRO-3")
    exact = find_questions(setup.data.valid, max_per_domain=settings.exact, row_tokens=row_tokens)
    if settings.exact and not exact:
        raise ValueError(
            "validation.tasks.exact: no held-out example has an answer to write (plain text has none, and one as "
            "long as data.row_tokens may be cut off); give held-out conversations, or leave the key out"
        )
    tasks = TrainingTasks(
        choices=choices,
        exact=exact,
        domain_set=setup.domain_set,
        tokenizer=setup.tokenizer,
        world=setup.world,
        questions_per_batch=config.rows_evaluated_at_once,
        budget_seconds=settings.budget_seconds,
        seed=config.run.seed,
        is_in_step=zero_stage(setup.ds_config) == 3 and setup.world.world_size > 1,
    )
    num_choices = 0 if choices is None else len(choices.answer_Q)
    logger.info("tasks: %d multiple-choice questions, %d written answers", num_choices, len(exact))
    return tasks


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class TrainingTasks:
    """The questions of a run, and how they are shared and limited."""

    choices: ChoiceSet | None
    exact: tuple[Question, ...]
    domain_set: DomainSet
    """Of the written answers."""
    tokenizer: Any
    world: World
    questions_per_batch: int
    """Multiple-choice questions a forward pass; written answers are generated four times as many at a time."""
    budget_seconds: float | None
    seed: int
    is_in_step: bool = False
    """Whether all ranks make the same number of forward passes (ZeRO-3)."""
    clock: Callable[[], float] = time.perf_counter
    """Returns seconds."""

    def __call__(self, engine: Engine) -> dict[str, float]:
        """Return `task/KIND/{accuracy, num_questions}` and `task/KIND/DOMAIN/...`, the same on every rank.

        An accuracy over all domains is their plain mean; a domain of which nothing was asked has none.
        Communication: one sum over ranks; in step, also one flag a batch where there is a budget.
        """
        started = self.clock()
        model = engine.deepspeed_engine.module.eval()
        num_choices = 0 if self.choices is None else len(self.choices.answer_Q)
        loss_sum_C = np.zeros(0 if self.choices is None else len(self.choices.options))
        is_asked = {"choices": np.zeros(num_choices), "exact": np.zeros(len(self.exact))}
        is_right_Q = np.zeros(len(self.exact))
        # Ask batch by batch, until the budget is spent.
        for kind, places in self._batches():
            if kind == "choices":
                assert self.choices is not None, "it has batches"
                numbers, losses = losses_of_questions(model, self.choices, places or [0])
                if places:  # an idle batch asked the first question
                    loss_sum_C[numbers] = losses
            else:
                is_right_Q[places] = self._are_right(model.causal_lm, places)
            is_asked[kind][places] = 1
            if self.budget_seconds is not None:
                is_spent = self.clock() - started >= self.budget_seconds
                if any_rank(is_spent) if self.is_in_step else is_spent:
                    break
        # Add what all ranks asked.
        parts = [loss_sum_C, is_asked["choices"], is_right_Q, is_asked["exact"]]
        totals = np.split(sum_over_ranks(np.concatenate(parts)), np.cumsum([len(part) for part in parts])[:-1])
        metrics: dict[str, float] = {}
        if self.choices is not None:
            is_right = self.choices.is_right(totals[0])
            metrics |= accuracies("choices", self.choices.domain_set, self.choices.domain_id_Q, is_right, totals[1] > 0)
        if self.exact:
            domain_id_Q = np.array([question.domain_id for question in self.exact])
            metrics |= accuracies("exact", self.domain_set, domain_id_Q, totals[2] > 0, totals[3] > 0)
        self._log(metrics, seconds=self.clock() - started)
        return metrics

    def _batches(self) -> Iterator[tuple[Kind, list[int]]]:
        """Yield this rank's batches of questions, the two kinds in turn by the share of each that is done.

        In step every rank has as many as the one with most questions; further ones are empty.
        """
        domain_id_Q = np.zeros(0, dtype=np.int64) if self.choices is None else self.choices.domain_id_Q
        sizes: dict[Kind, int] = {"choices": self.questions_per_batch, "exact": 4 * self.questions_per_batch}
        by_kind = {"choices": domain_id_Q, "exact": np.array([question.domain_id for question in self.exact], int)}
        batches = []
        for kind, size in sizes.items():
            own = in_turn(by_kind[kind], seed=self.seed)[self.world.rank :: self.world.world_size]
            num_batches = None
            if self.is_in_step:
                num_batches = num_batches_of_every_rank(
                    len(by_kind[kind]), world_size=self.world.world_size, batch_size=size
                )
            cut = [list(places) for places in batches_of(own, batch_size=size, num_batches=num_batches)]
            batches += [((i + 1) / len(cut), kind, places) for i, places in enumerate(cut)]
        for _, kind, places in sorted(batches, key=lambda batch: batch[:2]):
            yield kind, places

    def _are_right(self, causal_lm: Any, places: Sequence[int]) -> list[bool]:
        """Return whether the model writes the answers of some questions, white space at their ends aside."""
        asked = [self.exact[place] for place in places]
        answers = answer_greedily(
            causal_lm,
            asked,
            tokenizer=self.tokenizer,
            batch_size=max(len(asked), 1),
            num_batches=1 if self.is_in_step else None,
        )
        return [
            answer == text_of_answer(question.answer_ids, tokenizer=self.tokenizer)
            for question, answer in zip(asked, answers, strict=True)
        ]

    def _log(self, metrics: dict[str, float], *, seconds: float) -> None:
        """Log each kind's accuracy, and of how many questions it is if the budget cut them short."""
        for kind, num_all in (("choices", 0 if self.choices is None else len(self.choices.answer_Q)),
                              ("exact", len(self.exact))):  # fmt: skip
            if not num_all:
                continue
            num_asked = int(metrics[f"task/{kind}/num_questions"])
            cut = "" if num_asked == num_all else f" of {num_all:,}: validation.tasks.budget_seconds was spent"
            accuracy = metrics.get(f"task/{kind}/accuracy", float("nan"))
            logger.info("task %s: %.1f %% right, %d questions%s", kind, 100 * accuracy, num_asked, cut)
        logger.info("tasks took %.1f s", seconds)


def in_turn(domain_id_Q: np.ndarray, *, seed: int) -> list[int]:
    """Return the questions in the order they are asked: all domains in turn, each domain's in an order drawn once.

    Example: domains [0 0 0 1] and the drawn orders 2 0 1 and 3: 2 3 0 1.
    """
    rng = np.random.default_rng(seed)
    drawn = rng.permutation(len(domain_id_Q))
    num_before: dict[int, int] = {}
    turns = []
    for place in drawn.tolist():
        domain_id = int(domain_id_Q[place])
        turns.append((num_before.setdefault(domain_id, 0), domain_id, place))
        num_before[domain_id] += 1
    return [place for *_, place in sorted(turns)]


def accuracies(
    kind: Kind, domain_set: DomainSet, domain_id_Q: np.ndarray, is_right_Q: np.ndarray, is_asked_Q: np.ndarray
) -> dict[str, float]:
    """Return the share of right answers among those asked, by domain and as the mean of the domains, with counts.

    Example: law 1 of 2 right, code 0 of 1, art not asked: 0.5, 0.0 and a mean of 0.25 over 3 questions.
    """
    metrics, means = {f"task/{kind}/num_questions": float(is_asked_Q.sum())}, []
    for domain_id, name in enumerate(domain_set):
        is_own_Q = (domain_id_Q == domain_id) & is_asked_Q
        if not is_own_Q.any():
            continue
        means.append(float(is_right_Q[is_own_Q].mean()))
        metrics[f"task/{kind}/{name}/accuracy"] = means[-1]
        metrics[f"task/{kind}/{name}/num_questions"] = float(is_own_Q.sum())
    return {**metrics, f"task/{kind}/accuracy": float(np.mean(means))} if means else metrics

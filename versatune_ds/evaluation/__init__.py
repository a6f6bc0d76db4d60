"""Evaluate a model on every domain: held-out losses, written answers, multiple choice, and what it forgot."""

from __future__ import annotations

from versatune_ds.evaluation.data import EvaluationData, evaluation_data
from versatune_ds.evaluation.measure import evaluate_model
from versatune_ds.evaluation.result import Answers, Evaluation

__all__ = ["Answers", "Evaluation", "EvaluationData", "evaluate_model", "evaluation_data"]

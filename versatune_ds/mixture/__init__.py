"""Decide which domain is drawn how often, from losses by domain.

The one idea: numbers in, numbers out. Nothing here knows torch, files of data or other ranks; the training loop
hands in losses that are already summed over ranks and gets back a `Decision`.

Reading order: weights, statistics, signals, policies, safeguards, controller.
"""

from versatune_ds.mixture.controller import Controller
from versatune_ds.mixture.decision import Decision
from versatune_ds.mixture.inputs import Inputs, read_control
from versatune_ds.mixture.reference import References, load_references
from versatune_ds.mixture.schedule import Schedule
from versatune_ds.mixture.statistics import DomainStatistics, ExampleLosses
from versatune_ds.mixture.weights import prior_weights, starting_weights

__all__ = [
    "Controller",
    "Decision",
    "DomainStatistics",
    "ExampleLosses",
    "Inputs",
    "References",
    "Schedule",
    "load_references",
    "prior_weights",
    "read_control",
    "starting_weights",
]

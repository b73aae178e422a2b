"""Protocols of docs/evaluation.md: several seeds, every figure of each, mean and spread."""

from __future__ import annotations

from training.evaluate.machine import machine
from training.evaluate.protocols import MODELS, EvaluationError, Plan, Protocol, evaluate
from training.evaluate.rating import RATERS, RatingPlan, evaluate_rating

__all__ = [
    "MODELS",
    "RATERS",
    "EvaluationError",
    "Plan",
    "Protocol",
    "RatingPlan",
    "evaluate",
    "evaluate_rating",
    "machine",
]

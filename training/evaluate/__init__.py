"""Protocols of docs/evaluation.md: several seeds, every figure of each, mean and spread."""

from __future__ import annotations

from training.evaluate.left_out import LEFT_OUT, LeaveOneOutPlan, evaluate_left_out
from training.evaluate.machine import machine
from training.evaluate.protocols import MODELS, EvaluationError, Plan, Protocol, evaluate
from training.evaluate.rating import RATERS, RatingPlan, evaluate_rating

__all__ = [
    "LEFT_OUT",
    "MODELS",
    "RATERS",
    "EvaluationError",
    "LeaveOneOutPlan",
    "Plan",
    "Protocol",
    "RatingPlan",
    "evaluate",
    "evaluate_left_out",
    "evaluate_rating",
    "machine",
]

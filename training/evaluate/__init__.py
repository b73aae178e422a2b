"""Protocols of docs/evaluation.md: several seeds, every figure of each, mean and spread."""

from __future__ import annotations

from training.evaluate.leave_one_out import LEAVE_ONE_OUT_MODELS, LeaveOneOutPlan, evaluate_leave_one_out
from training.evaluate.machine import machine
from training.evaluate.protocols import MODELS, EvaluationError, Plan, Protocol, evaluate
from training.evaluate.rating import RATING_MODELS, RatingPlan, evaluate_rating

__all__ = [
    "LEAVE_ONE_OUT_MODELS",
    "MODELS",
    "RATING_MODELS",
    "EvaluationError",
    "LeaveOneOutPlan",
    "Plan",
    "Protocol",
    "RatingPlan",
    "evaluate",
    "evaluate_leave_one_out",
    "evaluate_rating",
    "machine",
]

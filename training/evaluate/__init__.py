"""Protocols of docs/evaluation.md: several seeds, every figure of each, mean and spread."""

from __future__ import annotations

from training.evaluate.machine import machine
from training.evaluate.protocols import MODELS, EvaluationError, Plan, Protocol, evaluate

__all__ = ["MODELS", "EvaluationError", "Plan", "Protocol", "evaluate", "machine"]

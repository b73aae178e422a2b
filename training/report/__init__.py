"""`lacuna report`: raw results as one HTML page that needs nothing else."""

from __future__ import annotations

from training.report.page import ReportError, make_report

__all__ = ["ReportError", "make_report"]

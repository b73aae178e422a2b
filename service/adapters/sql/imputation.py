"""The online imputation error: how near generated features were to the real ones that replaced them."""

from __future__ import annotations

from datetime import UTC, datetime

from sqlalchemy import Connection, func, insert, select

from service.adapters.sql.queries import Queries, reads, writes
from service.adapters.sql.tables import imputation_errors


class ImputationErrorQueries(Queries):
    """Pairs of a generated feature and the real one that replaced it."""

    @writes
    def add_imputation_error(
        self, connection: Connection, item: str, modality: str, confidence: float, cosine: float, model_version: str
    ) -> None:
        """Record one pair."""
        row = {"item": item, "modality": modality, "confidence": float(confidence), "cosine": float(cosine)}
        connection.execute(insert(imputation_errors), {**row, "model_version": model_version, "at": datetime.now(UTC)})

    @reads
    def imputation_errors(self, connection: Connection) -> dict[str, tuple[int, float, float]]:
        """By modality: number of pairs, mean confidence, mean centred cosine."""
        table = imputation_errors.c
        query = select(table.modality, func.count(), func.avg(table.confidence), func.avg(table.cosine))
        rows = connection.execute(query.group_by(table.modality).order_by(table.modality))
        return {modality: (pairs, confidence, cosine) for modality, pairs, confidence, cosine in rows}

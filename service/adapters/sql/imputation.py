"""Pairs of a generated feature and the real one that replaced it: the online imputation error, and what confidences are
calibrated to."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import ColumnElement, Connection, Row, Select, Subquery, case, func, insert, select

from models.calibration import CalibrationMap
from service.adapters.sql.changes import log
from service.adapters.sql.database import upsert
from service.adapters.sql.queries import Queries, reads, writes
from service.adapters.sql.tables import calibrations, imputation_errors, item_categories, items
from service.ports import (
    BUCKETS,
    Committed,
    ErrorGroup,
    ImputationErrors,
    ImputationPair,
    PairCount,
    Pairs,
    StoredCalibration,
)

NEWEST = 20_000  # pairs that errors are averaged over
RECENT = 200  # of one modality, those that a warning goes by
CATEGORIES = 100  # of one modality, those with the most pairs


class ImputationErrorQueries(Queries):
    """Pairs of a generated feature and the real one that replaced it. `write_items` adds them."""

    @reads
    def imputation_errors(self, connection: Connection) -> ImputationErrors:
        """What the newest pairs say, by modality."""
        newest = _newest(imputation_errors.c.id > 0, NEWEST)
        place = _bucket(newest)
        buckets: dict[str, dict[int, ErrorGroup]] = {}
        for modality, bucket, *group in connection.execute(_grouped(newest, newest.c.modality, place)):
            buckets.setdefault(modality, {})[bucket] = ErrorGroup(*group)
        recent = {modality: _recent(connection, modality) for modality in buckets}
        return ImputationErrors(buckets, recent, _by_category(connection, newest))

    @reads
    def count_pairs(self, connection: Connection, bundle: str) -> dict[str, PairCount]:
        """By modality how many pairs there are of a bundle, and how many of them its calibration does not know."""
        table, known = imputation_errors.c, calibrations.c
        its = (known.bundle == table.bundle) & (known.modality == table.modality)
        is_new = case((table.id > func.coalesce(known.newest, 0), 1), else_=0)
        query = (
            select(table.modality, func.count(), func.sum(is_new))
            .select_from(imputation_errors.outerjoin(calibrations, its))
            .where(table.bundle == bundle, table.confidence > 0)
            .group_by(table.modality)
        )
        return {modality: PairCount(pairs, int(new)) for modality, pairs, new in connection.execute(query)}

    @reads
    def pairs(self, connection: Connection, bundle: str, modality: str, *, limit: int) -> Pairs:
        """The newest pairs of a bundle and a modality of which the model says anything, in order."""
        table = imputation_errors.c
        query = select(table.id, table.confidence, table.cosine).order_by(table.id.desc()).limit(limit)
        chosen = (table.bundle == bundle, table.modality == modality, table.confidence > 0)
        rows = connection.execute(query.where(*chosen)).all()[::-1]
        return Pairs(rows[-1].id if rows else 0, [row.confidence for row in rows], [row.cosine for row in rows])

    @reads
    def calibrations(self, connection: Connection, bundle: str) -> dict[str, StoredCalibration]:
        """By modality what confidences under a bundle are calibrated to."""
        query = select(calibrations).where(calibrations.c.bundle == bundle).order_by(calibrations.c.modality)
        return {row.modality: _calibration(row) for row in connection.execute(query)}

    @writes
    def save_calibration(
        self, connection: Connection, bundle: str, modality: str, calibration: StoredCalibration
    ) -> Committed[bool]:
        """Store a calibration, unless there is one that knows later pairs; whether it was stored."""
        key = (calibrations.c.bundle == bundle) & (calibrations.c.modality == modality)
        known = connection.execute(select(calibrations.c.newest).where(key)).scalar_one_or_none()
        if known is not None and known >= calibration.newest:
            return Committed(False)
        values = {**asdict(calibration), "map": asdict(calibration.map)}
        upsert(connection, calibrations, {"bundle": bundle, "modality": modality, **values})
        return Committed(True, log(connection, self.model, calibration=[bundle]))


def add_pairs(connection: Connection, pairs: Mapping[str, Sequence[ImputationPair]]) -> None:
    """Record pairs by item."""
    now = datetime.now(UTC)
    rows = [{"item": item, "at": now, **asdict(pair)} for item, several in pairs.items() for pair in several]
    if rows:
        connection.execute(insert(imputation_errors), rows)


def _newest(condition: ColumnElement[bool], limit: int) -> Subquery:
    table = imputation_errors.c
    served = func.coalesce(table.served, table.confidence).label("served")
    query = select(table.item, table.modality, served, table.cosine).where(condition)
    return query.order_by(table.id.desc()).limit(limit).subquery()


def _bucket(pairs: Subquery) -> ColumnElement[int]:
    """The place of a served confidence among BUCKETS of equal width."""
    # No CAST, which rounds down on one database and to the nearest on another.
    bounds = [case((pairs.c.served >= place / BUCKETS, 1), else_=0) for place in range(1, BUCKETS)]
    return sum(bounds[1:], bounds[0])


def _grouped(pairs: Subquery, *by: ColumnElement[Any]) -> Select[Any]:
    means = func.count(), func.avg(pairs.c.served), func.avg(pairs.c.cosine)
    return select(*by, *means).group_by(*by).order_by(*by)


def _recent(connection: Connection, modality: str) -> dict[int, ErrorGroup]:
    pairs = _newest(imputation_errors.c.modality == modality, RECENT)
    rows = connection.execute(_grouped(pairs, _bucket(pairs)))
    return {bucket: ErrorGroup(*group) for bucket, *group in rows}


def _by_category(connection: Connection, pairs: Subquery) -> dict[str, dict[str, ErrorGroup]]:
    query = _grouped(pairs, pairs.c.modality, item_categories.c.category)
    query = query.join(items, items.c.id == pairs.c.item)
    query = query.join(item_categories, item_categories.c.item_row == items.c.row_id)
    found: dict[str, dict[str, ErrorGroup]] = {}
    for modality, category, *group in connection.execute(query):
        found.setdefault(modality, {})[category] = ErrorGroup(*group)
    return {
        modality: dict(sorted(groups.items(), key=lambda row: (-row[1].pairs, row[0]))[:CATEGORIES])
        for modality, groups in found.items()
    }


def _calibration(row: Row[Any]) -> StoredCalibration:
    form = CalibrationMap(row.map["form"], tuple(row.map["raw"]), tuple(row.map["served"]))
    return StoredCalibration(form, row.pairs, row.newest, row.error_before, row.error_after, row.at)

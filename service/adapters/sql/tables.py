"""The database's tables, as SQLAlchemy Core sees them; `service/migrations` creates them."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    DateTime,
    Dialect,
    Double,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    Table,
    Text,
    TypeDecorator,
    UniqueConstraint,
)
from sqlalchemy.dialects import postgresql


class UtcDateTime(TypeDecorator[datetime]):
    """An aware moment in UTC, also where the database keeps no time zone."""

    impl = DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | None:  # noqa: ARG002
        return None if value is None else value.astimezone(UTC)

    def process_result_value(self, value: datetime | None, dialect: Dialect) -> datetime | None:  # noqa: ARG002
        return None if value is None else value.replace(tzinfo=value.tzinfo or UTC)


_COMPACT = json.JSONEncoder(separators=(",", ":"))


class JsonText(TypeDecorator[Any]):
    """A JSON value kept as ASCII text: any character, NUL and NaN included, passes on every database."""

    impl = Text
    cache_ok = True

    def process_bind_param(self, value: Any, dialect: Dialect) -> str:  # noqa: ARG002
        return _COMPACT.encode(value)

    def process_result_value(self, value: str | None, dialect: Dialect) -> Any:  # noqa: ARG002
        return None if value is None else json.loads(value)


Serial = BigInteger().with_variant(Integer, "sqlite")  # SQLite counts up by itself only under an INTEGER key
# Compared and sorted by code point on every database, whatever the server's locale.
Key = Text().with_variant(postgresql.TEXT(collation="C"), "postgresql")

metadata = MetaData()


def _item_row(**options: Any) -> Column[int]:
    return Column("item_row", BigInteger, ForeignKey("items.row_id", ondelete="CASCADE"), nullable=False, **options)


items = Table(
    "items",
    metadata,
    Column("row_id", Serial, primary_key=True, autoincrement=True),
    Column("id", Key, nullable=False, unique=True),
    Column("title", Text),
    Column("categories", JsonText, nullable=False),
    Column("metadata", JsonText, nullable=False),
    Column("available", Boolean, nullable=False),
    Column("version", BigInteger, nullable=False),
    Column("created_at", UtcDateTime, nullable=False),
    Column("updated_at", UtcDateTime, nullable=False),
    Column("search_text", Text, nullable=False),  # id and title as `items.folded` has them, for `q`
    Column("remarks", JsonText, nullable=False, server_default="{}"),  # of the model that it was last written under
    sqlite_autoincrement=True,
)

item_categories = Table(
    "item_categories",
    metadata,
    _item_row(primary_key=True),
    Column("category", Key, primary_key=True),
    Index("ix_item_categories_category", "category", "item_row"),
)

media = Table(
    "media",
    metadata,
    Column("sha256", Key, primary_key=True),
    Column("media_type", Text, nullable=False),
    Column("size", BigInteger, nullable=False),
    Column("data", LargeBinary, nullable=False),
)

features = Table(
    "features",
    metadata,
    _item_row(primary_key=True),
    Column("modality", Key, primary_key=True),
    Column("source", Text, nullable=False),
    Column("encoder", Text, nullable=False),
    Column("text", Text),
    Column("media", Key, ForeignKey("media.sha256")),
    Column("media_type", Text),
    Column("vector", LargeBinary, nullable=False),  # float32, little-endian
    Index("ix_features_media", "media"),
)

# Models that this database is or was served with, one a row: what is derived from the items is kept for each of them
# under `model`, its id here. 0 is nobody's.
models = Table(
    "models",
    metadata,
    Column("id", Serial, primary_key=True, autoincrement=True),
    Column("identity", Key, nullable=False, unique=True),
    Column("version", Key, nullable=False),
    Column("state", Text, nullable=False),
    # Up to here the change log's entries of other models have been enqueued for this one.
    Column("position", BigInteger, nullable=False),
    Column("detail", Text),
    Column("progress", JsonText, nullable=False),
    Column("forced", Boolean, nullable=False),
    Column("updated_at", UtcDateTime, nullable=False),
    Column("worker", Text),  # who prepares it, until `leased_until`
    Column("leased_until", UtcDateTime),
    sqlite_autoincrement=True,
)

# Processes that serve this database, and with which model; `ready` is the one that they could go over to.
workers = Table(
    "workers",
    metadata,
    Column("id", Key, primary_key=True),
    Column("serving", BigInteger, nullable=False),
    Column("ready", BigInteger, nullable=False),
    Column("at", UtcDateTime, nullable=False),
)


def _model(**options: Any) -> Column[int]:
    return Column("model", BigInteger, nullable=False, server_default="0", **options)


# What a model makes of an item, as of the item's `version`. Without a row of that version it has yet to be made.
item_states = Table(
    "item_states",
    metadata,
    _item_row(primary_key=True),
    _model(primary_key=True),
    Column("version", BigInteger, nullable=False),
    Column("model_version", Text, nullable=False),
    Column("derived", LargeBinary, nullable=False),
    Column("remarks", JsonText, nullable=False),
)

# Features that a model's own encoders made of what other encoders made `features` of; empty where they read nothing.
recoded_features = Table(
    "recoded_features",
    metadata,
    _item_row(primary_key=True),
    _model(primary_key=True),
    Column("modality", Key, primary_key=True),
    Column("encoder", Text, nullable=False),
    Column("vector", LargeBinary, nullable=False),  # float32, little-endian
)

generated_features = Table(
    "generated_features",
    metadata,
    _item_row(primary_key=True),
    _model(primary_key=True),
    Column("modality", Key, primary_key=True),
    Column("generator", Text, nullable=False),
    Column("confidence", Double, nullable=False),
    Column("basis", JsonText, nullable=False),
    Column("model_version", Text, nullable=False),
    Column("vector", LargeBinary, nullable=False),  # float32, little-endian
)

feedback = Table(
    "feedback",
    metadata,
    Column("id", Serial, primary_key=True, autoincrement=True),
    Column("user_id", Key, nullable=False),
    _item_row(),
    Column("type", Key, nullable=False),
    Column("timestamp", UtcDateTime, nullable=False),
    Column("value", Double),
    Column("text", Text),
    Column("recommendation_id", Text),
    UniqueConstraint("user_id", "item_row", "type", "timestamp", name="uq_feedback_event"),
    Index("ix_feedback_user", "user_id", "timestamp"),
    Index("ix_feedback_item", "item_row", "timestamp", "user_id"),
    sqlite_autoincrement=True,
)

# What the active bundle's encoder made of the texts of reviews, as they are needed.
review_vectors = Table(
    "review_vectors",
    metadata,
    Column("feedback_id", Serial, ForeignKey("feedback.id", ondelete="CASCADE"), primary_key=True, autoincrement=False),
    Column("encoder", Text, nullable=False),
    Column("words", Integer, nullable=False),
    Column("vector", LargeBinary, nullable=False),  # float32, little-endian
)

changes = Table(
    "changes",
    metadata,
    Column("position", Serial, primary_key=True, autoincrement=True),
    Column("kind", Text, nullable=False),
    Column("key", Key, nullable=False),
    Column("at", UtcDateTime, nullable=False),
    _model(),  # under which it was written
    Index("ix_changes_key", "key"),
    sqlite_autoincrement=True,  # a position is never given twice, even after the newest entries were erased
)

# The queue of items that are pending regeneration. `mark` is the position of the change log that each was enqueued for,
# `at` when it first was.
awaiting = Table(
    "awaiting",
    metadata,
    _item_row(primary_key=True),
    _model(primary_key=True),
    Column("mark", BigInteger, nullable=False),
    Column("at", UtcDateTime, nullable=False),
)

# Changes of items' observed features that have yet to reach the items which are generated from them, by the position of
# the change log. `before` are the former features.
feature_changes = Table(
    "feature_changes",
    metadata,
    Column("position", BigInteger, primary_key=True, autoincrement=False),
    _model(primary_key=True),
    Column("item", Key, primary_key=True),
    Column("before", LargeBinary, nullable=False),
    Column("at", UtcDateTime, nullable=False),
)

idempotency = Table(
    "idempotency",
    metadata,
    Column("key", Key, primary_key=True),
    Column("fingerprint", Text, nullable=False),
    Column("at", UtcDateTime, nullable=False),
    Column("status", Integer),  # without one, the request is being worked on
    Column("body", LargeBinary),
    Index("ix_idempotency_at", "at"),
)

imputation_errors = Table(
    "imputation_errors",
    metadata,
    Column("id", Serial, primary_key=True, autoincrement=True),
    Column("item", Key, nullable=False),
    Column("modality", Key, nullable=False),
    Column("confidence", Double, nullable=False),
    Column("cosine", Double, nullable=False),
    Column("model_version", Text, nullable=False),
    Column("at", UtcDateTime, nullable=False),
    Column("served", Double),  # the confidence that was answered; `confidence` is the model's own
    Column("bundle", Key),  # the identity of the bundle whose model it was, where that was the active one
    Index("ix_imputation_errors_modality", "modality", "bundle", "id"),
    sqlite_autoincrement=True,
)

# What confidences are calibrated to, by bundle and modality; `newest` is the last of the pairs that it was fitted on.
calibrations = Table(
    "calibrations",
    metadata,
    Column("bundle", Key, primary_key=True),
    Column("modality", Key, primary_key=True),
    Column("pairs", Integer, nullable=False),
    Column("newest", BigInteger, nullable=False),
    Column("map", JsonText, nullable=False),
    Column("error_before", Double, nullable=False),
    Column("error_after", Double, nullable=False),
    Column("at", UtcDateTime, nullable=False),
)

meta = Table(
    "meta",
    metadata,
    Column("key", Key, primary_key=True),
    Column("value", Text, nullable=False),
)

"""The first schema: items, features, media, feedback, change log, imputation errors, meta."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

SERIAL = sa.BigInteger().with_variant(sa.Integer, "sqlite")
KEY = sa.Text().with_variant(postgresql.TEXT(collation="C"), "postgresql")
MOMENT = sa.DateTime(timezone=True)


def upgrade() -> None:
    """Create every table."""
    _items()
    _parts()
    _feedback()
    _records()


def _item_row(*, primary_key: bool = False) -> sa.Column[int]:
    reference = sa.ForeignKey("items.row_id", ondelete="CASCADE")
    return sa.Column("item_row", sa.BigInteger, reference, primary_key=primary_key, nullable=False)


def _items() -> None:
    op.create_table(
        "items",
        sa.Column("row_id", SERIAL, primary_key=True, autoincrement=True),
        sa.Column("id", KEY, nullable=False, unique=True),
        sa.Column("title", sa.Text),
        sa.Column("categories", sa.Text, nullable=False),
        sa.Column("metadata", sa.Text, nullable=False),
        sa.Column("available", sa.Boolean, nullable=False),
        sa.Column("version", sa.BigInteger, nullable=False),
        sa.Column("created_at", MOMENT, nullable=False),
        sa.Column("updated_at", MOMENT, nullable=False),
        sa.Column("model_version", sa.Text, nullable=False),
        sa.Column("search_text", sa.Text, nullable=False),
        sa.Column("derived", sa.LargeBinary, nullable=False),
        sqlite_autoincrement=True,
    )
    op.create_table(
        "item_categories",
        _item_row(primary_key=True),
        sa.Column("category", KEY, primary_key=True),
    )
    op.create_index("ix_item_categories_category", "item_categories", ["category", "item_row"])


def _parts() -> None:
    op.create_table(
        "media",
        sa.Column("sha256", KEY, primary_key=True),
        sa.Column("media_type", sa.Text, nullable=False),
        sa.Column("size", sa.BigInteger, nullable=False),
        sa.Column("data", sa.LargeBinary, nullable=False),
    )
    op.create_table(
        "features",
        _item_row(primary_key=True),
        sa.Column("modality", KEY, primary_key=True),
        sa.Column("source", sa.Text, nullable=False),
        sa.Column("encoder", sa.Text, nullable=False),
        sa.Column("text", sa.Text),
        sa.Column("media", KEY, sa.ForeignKey("media.sha256")),
        sa.Column("media_type", sa.Text),
        sa.Column("vector", sa.LargeBinary, nullable=False),
    )
    op.create_index("ix_features_media", "features", ["media"])
    op.create_table(
        "generated_features",
        _item_row(primary_key=True),
        sa.Column("modality", KEY, primary_key=True),
        sa.Column("generator", sa.Text, nullable=False),
        sa.Column("confidence", sa.Double, nullable=False),
        sa.Column("basis", sa.Text, nullable=False),
        sa.Column("model_version", sa.Text, nullable=False),
        sa.Column("vector", sa.LargeBinary, nullable=False),
    )


def _feedback() -> None:
    op.create_table(
        "feedback",
        sa.Column("id", SERIAL, primary_key=True, autoincrement=True),
        sa.Column("user_id", KEY, nullable=False),
        _item_row(),
        sa.Column("type", KEY, nullable=False),
        sa.Column("timestamp", MOMENT, nullable=False),
        sa.Column("value", sa.Double),
        sa.Column("text", sa.Text),
        sa.Column("recommendation_id", sa.Text),
        sa.UniqueConstraint("user_id", "item_row", "type", "timestamp", name="uq_feedback_event"),
        sqlite_autoincrement=True,
    )
    op.create_index("ix_feedback_user", "feedback", ["user_id", "timestamp"])
    op.create_index("ix_feedback_item", "feedback", ["item_row", "timestamp", "user_id"])


def _records() -> None:
    op.create_table(
        "changes",
        sa.Column("position", SERIAL, primary_key=True, autoincrement=True),
        sa.Column("kind", sa.Text, nullable=False),
        sa.Column("key", KEY, nullable=False),
        sa.Column("at", MOMENT, nullable=False),
        sqlite_autoincrement=True,
    )
    op.create_index("ix_changes_key", "changes", ["key"])
    op.create_table(
        "imputation_errors",
        sa.Column("id", SERIAL, primary_key=True, autoincrement=True),
        sa.Column("item", KEY, nullable=False),
        sa.Column("modality", KEY, nullable=False),
        sa.Column("confidence", sa.Double, nullable=False),
        sa.Column("cosine", sa.Double, nullable=False),
        sa.Column("model_version", sa.Text, nullable=False),
        sa.Column("at", MOMENT, nullable=False),
        sqlite_autoincrement=True,
    )
    op.create_table(
        "meta",
        sa.Column("key", KEY, primary_key=True),
        sa.Column("value", sa.Text, nullable=False),
    )

"""Vectors of reviews, each made once."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Create the table."""
    number = sa.BigInteger().with_variant(sa.Integer, "sqlite")
    op.create_table(
        "review_vectors",
        sa.Column("feedback_id", number, sa.ForeignKey("feedback.id", ondelete="CASCADE"), primary_key=True),
        sa.Column("encoder", sa.Text, nullable=False),
        sa.Column("words", sa.Integer, nullable=False),
        sa.Column("vector", sa.LargeBinary, nullable=False),
    )

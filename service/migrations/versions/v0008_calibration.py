"""Pairs of generated and real features say what was served and under which bundle, and confidences are calibrated."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None

KEY = sa.Text().with_variant(postgresql.TEXT(collation="C"), "postgresql")


def upgrade() -> None:
    """Add the columns, which earlier pairs lack, and create the table."""
    op.add_column("imputation_errors", sa.Column("served", sa.Double))
    op.add_column("imputation_errors", sa.Column("bundle", KEY))
    op.create_index("ix_imputation_errors_modality", "imputation_errors", ["modality", "bundle", "id"])
    op.create_table(
        "calibrations",
        sa.Column("bundle", KEY, primary_key=True),
        sa.Column("modality", KEY, primary_key=True),
        sa.Column("pairs", sa.Integer, nullable=False),
        sa.Column("newest", sa.BigInteger, nullable=False),
        sa.Column("map", sa.Text, nullable=False),
        sa.Column("error_before", sa.Double, nullable=False),
        sa.Column("error_after", sa.Double, nullable=False),
        sa.Column("at", sa.DateTime(timezone=True), nullable=False),
    )

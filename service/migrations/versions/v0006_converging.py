"""Changes of features are kept until they have reached the items that are generated from them, and what is pending says
since when. What was pending before need not be kept: the derived state has another form, and is made anew."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None

KEY = sa.Text().with_variant(postgresql.TEXT(collation="C"), "postgresql")
MOMENT = sa.DateTime(timezone=True)


def upgrade() -> None:
    """Create the tables."""
    reference = sa.ForeignKey("items.row_id", ondelete="CASCADE")
    op.drop_table("awaiting")
    op.create_table(
        "awaiting",
        sa.Column("item_row", sa.BigInteger, reference, primary_key=True, nullable=False),
        sa.Column("mark", sa.BigInteger, nullable=False),
        sa.Column("at", MOMENT, nullable=False),
    )
    op.create_table(
        "feature_changes",
        sa.Column("position", sa.BigInteger, primary_key=True, autoincrement=False, nullable=False),
        sa.Column("item", KEY, nullable=False),
        sa.Column("before", sa.LargeBinary, nullable=False),
        sa.Column("at", MOMENT, nullable=False),
    )

"""What Globus Compute's own programs need: queues of results."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None

ID = sa.String(length=36).with_variant(sa.UUID(as_uuid=False), "postgresql")
ROW_NUMBER = sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def upgrade() -> None:
    op.create_table(
        "result_queues",
        sa.Column("task_group_id", ID, nullable=False),
        sa.Column("forwarded_seq", ROW_NUMBER, nullable=False),
        sa.Column("created_at", sa.Double(), nullable=False),
        sa.PrimaryKeyConstraint("task_group_id"),
    )


def downgrade() -> None:
    op.drop_table("result_queues")

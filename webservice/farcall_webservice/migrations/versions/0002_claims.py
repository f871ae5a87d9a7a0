"""Which dispatcher will publish a submission."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

ID = sa.String(length=36).with_variant(sa.UUID(as_uuid=False), "postgresql")


def upgrade() -> None:
    op.add_column("submissions", sa.Column("claimed_by", ID, nullable=True))
    op.add_column("submissions", sa.Column("claimed_until", sa.Double(), nullable=True))


def downgrade() -> None:
    with op.batch_alter_table("submissions") as table:
        table.drop_column("claimed_until")
        table.drop_column("claimed_by")

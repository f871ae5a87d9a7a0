"""What Globus Compute's own programs need: queues of results, and endpoints that are children of others."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None

ID = sa.String(length=36).with_variant(sa.UUID(as_uuid=False), "postgresql")
UNFINISHED = sa.text("completed_at IS NULL")
ROW_NUMBER = sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def upgrade() -> None:
    op.create_table(
        "result_queues",
        sa.Column("task_group_id", ID, nullable=False),
        sa.Column("forwarded_seq", ROW_NUMBER, nullable=False),
        sa.Column("created_at", sa.Double(), nullable=False),
        sa.PrimaryKeyConstraint("task_group_id"),
    )
    op.add_column("endpoints", sa.Column("reached_as", sa.String(length=255), nullable=True))
    op.add_column("endpoints", sa.Column("parent_id", ID, nullable=True))
    op.add_column("endpoints", sa.Column("user_endpoint_config", sa.JSON(), nullable=True))
    op.add_column("endpoints", sa.Column("phase", sa.String(length=10), nullable=True))
    op.add_column("endpoints", sa.Column("awaited_since", sa.Double(), nullable=True))
    op.add_column("endpoints", sa.Column("attempts", sa.Integer(), nullable=True))
    op.create_index("ix_endpoints_parent_id", "endpoints", ["parent_id"], unique=False)

    op.add_column("tasks", sa.Column("runner_id", ID, nullable=True))
    op.execute("UPDATE tasks SET runner_id = endpoint_id")
    op.drop_index("ix_tasks_unfinished", "tasks")
    with op.batch_alter_table("tasks") as table:
        table.alter_column("runner_id", existing_type=ID, nullable=False)
    _index_unfinished("runner_id")


def _index_unfinished(column: str) -> None:
    op.create_index(
        "ix_tasks_unfinished",
        "tasks",
        [column, "state"],
        unique=False,
        sqlite_where=UNFINISHED,
        postgresql_where=UNFINISHED,
    )


def downgrade() -> None:
    op.drop_index("ix_tasks_unfinished", "tasks")
    with op.batch_alter_table("tasks") as table:
        table.drop_column("runner_id")
    _index_unfinished("endpoint_id")
    op.drop_index("ix_endpoints_parent_id", "endpoints")
    with op.batch_alter_table("endpoints") as table:
        for name in ("attempts", "awaited_since", "phase", "user_endpoint_config", "parent_id", "reached_as"):
            table.drop_column(name)
    op.drop_table("result_queues")

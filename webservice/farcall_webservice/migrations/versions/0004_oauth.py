"""Passwords, clients, codes, refresh tokens and the signing key."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None

ID = sa.String(length=36).with_variant(sa.UUID(as_uuid=False), "postgresql")


def upgrade() -> None:
    op.add_column("users", sa.Column("password_hash", sa.String(length=255), nullable=True))

    op.add_column("tokens", sa.Column("client_id", ID, nullable=True))
    op.add_column("tokens", sa.Column("scope", sa.Text(), nullable=True))
    op.add_column("tokens", sa.Column("resource_server", sa.String(length=255), nullable=True))
    op.add_column("tokens", sa.Column("grant_id", ID, nullable=True))
    for column in ("client_id", "grant_id", "expires_at"):
        op.create_index(f"ix_tokens_{column}", "tokens", [column], unique=False)

    op.create_table(
        "oauth_clients",
        sa.Column("id", ID, nullable=False),
        sa.Column("name", sa.String(length=255), nullable=False),
        sa.Column("user_id", ID, nullable=False),
        sa.Column("secret_digest", sa.String(length=64), nullable=False),
        sa.Column("redirect_uris", sa.JSON(), nullable=False),
        sa.Column("created_at", sa.Double(), nullable=False),
        sa.Column("revoked_at", sa.Double(), nullable=True),
        sa.ForeignKeyConstraint(["user_id"], ["users.id"]),
        sa.PrimaryKeyConstraint("id"),
    )
    op.create_index("ix_oauth_clients_user_id", "oauth_clients", ["user_id"], unique=False)

    op.create_table(
        "authorization_codes",
        sa.Column("id", ID, nullable=False),
        sa.Column("digest", sa.String(length=64), nullable=False),
        sa.Column("client_id", ID, nullable=False),
        sa.Column("user_id", ID, nullable=False),
        sa.Column("redirect_uri", sa.Text(), nullable=False),
        sa.Column("scope", sa.Text(), nullable=False),
        sa.Column("nonce", sa.Text(), nullable=True),
        sa.Column("code_challenge", sa.String(length=128), nullable=True),
        sa.Column("offline", sa.Boolean(), nullable=False),
        sa.Column("created_at", sa.Double(), nullable=False),
        sa.Column("expires_at", sa.Double(), nullable=False),
        sa.Column("used_at", sa.Double(), nullable=True),
        sa.ForeignKeyConstraint(["user_id"], ["users.id"]),
        sa.PrimaryKeyConstraint("id"),
        sa.UniqueConstraint("digest"),
    )
    for column in ("user_id", "expires_at"):
        op.create_index(f"ix_authorization_codes_{column}", "authorization_codes", [column], unique=False)

    op.create_table(
        "refresh_tokens",
        sa.Column("id", ID, nullable=False),
        sa.Column("digest", sa.String(length=64), nullable=False),
        sa.Column("client_id", ID, nullable=False),
        sa.Column("user_id", ID, nullable=False),
        sa.Column("grant_id", ID, nullable=False),
        sa.Column("scope", sa.Text(), nullable=False),
        sa.Column("resource_server", sa.String(length=255), nullable=False),
        sa.Column("created_at", sa.Double(), nullable=False),
        sa.Column("expires_at", sa.Double(), nullable=False),
        sa.Column("revoked_at", sa.Double(), nullable=True),
        sa.ForeignKeyConstraint(["user_id"], ["users.id"]),
        sa.PrimaryKeyConstraint("id"),
        sa.UniqueConstraint("digest"),
    )
    for column in ("client_id", "user_id", "grant_id", "expires_at"):
        op.create_index(f"ix_refresh_tokens_{column}", "refresh_tokens", [column], unique=False)

    op.create_table(
        "signing_keys",
        sa.Column("purpose", sa.String(length=32), nullable=False),
        sa.Column("private_pem", sa.Text(), nullable=False),
        sa.Column("created_at", sa.Double(), nullable=False),
        sa.PrimaryKeyConstraint("purpose"),
    )
    op.create_table(
        "login_failures",
        sa.Column("subject", sa.String(length=64), nullable=False),
        sa.Column("failures", sa.Integer(), nullable=False),
        sa.Column("last_at", sa.Double(), nullable=False),
        sa.Column("blocked_until", sa.Double(), nullable=False),
        sa.PrimaryKeyConstraint("subject"),
    )
    op.create_index("ix_login_failures_last_at", "login_failures", ["last_at"], unique=False)


def downgrade() -> None:
    for table in ("login_failures", "signing_keys", "refresh_tokens", "authorization_codes", "oauth_clients"):
        op.drop_table(table)
    for column in ("client_id", "grant_id", "expires_at"):
        op.drop_index(f"ix_tokens_{column}", "tokens")
    with op.batch_alter_table("tokens") as tokens:
        for column in ("grant_id", "resource_server", "scope", "client_id"):
            tokens.drop_column(column)
    with op.batch_alter_table("users") as users:
        users.drop_column("password_hash")

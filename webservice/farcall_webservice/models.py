"""The rows of the ledger.

Ids are UUIDs as lower-case text. Columns named ``..._at`` hold seconds since 1970. Foreign keys of the busy table
``tasks`` are not declared: the ledger writes its rows from rows that it has just read.
"""

from __future__ import annotations

from typing import Any

from sqlalchemy import (
    JSON,
    BigInteger,
    Boolean,
    Double,
    ForeignKey,
    Index,
    Integer,
    String,
    Text,
    UniqueConstraint,
    text,
)
from sqlalchemy.dialects import postgresql
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

#: Native where PostgreSQL has it; as text elsewhere, which costs no conversion per row.
Id = String(36).with_variant(postgresql.UUID(as_uuid=False), "postgresql")
Seconds: Double[float] = Double()
#: SQLite numbers rows by itself only where the key is called INTEGER.
RowNumber = BigInteger().with_variant(Integer(), "sqlite")


class Base(DeclarativeBase):
    """The root of the tables; Alembic compares the database with its metadata."""


class User(Base):
    """Somebody who may hold tokens."""

    __tablename__ = "users"

    id: Mapped[str] = mapped_column(Id, primary_key=True)
    name: Mapped[str] = mapped_column(String(255), unique=True)
    created_at: Mapped[float] = mapped_column(Seconds)
    #: Null = logs in with tokens only.
    password_hash: Mapped[str | None] = mapped_column(String(255))


class Group(Base):
    """People who share functions with one another."""

    __tablename__ = "groups"

    id: Mapped[str] = mapped_column(Id, primary_key=True)
    name: Mapped[str] = mapped_column(String(255), unique=True)
    created_at: Mapped[float] = mapped_column(Seconds)


class Membership(Base):
    """That a user is in a group."""

    __tablename__ = "memberships"

    group_id: Mapped[str] = mapped_column(Id, ForeignKey("groups.id"), primary_key=True)
    user_id: Mapped[str] = mapped_column(Id, ForeignKey("users.id"), primary_key=True, index=True)


class Token(Base):
    """A bearer token; only its SHA-256 is kept.

    Those of `token create` are good for everything. Those that a client was given have its id, and are good for their
    scope alone.
    """

    __tablename__ = "tokens"

    id: Mapped[str] = mapped_column(Id, primary_key=True)
    user_id: Mapped[str] = mapped_column(Id, ForeignKey("users.id"), index=True)
    digest: Mapped[str] = mapped_column(String(64), unique=True)
    label: Mapped[str] = mapped_column(String(255), default="")
    created_at: Mapped[float] = mapped_column(Seconds)
    expires_at: Mapped[float | None] = mapped_column(Seconds, index=True)
    revoked_at: Mapped[float | None] = mapped_column(Seconds)
    client_id: Mapped[str | None] = mapped_column(Id, index=True)
    scope: Mapped[str | None] = mapped_column(Text)
    resource_server: Mapped[str | None] = mapped_column(String(255))
    #: The login that it came from: the id of its authorization code.
    grant_id: Mapped[str | None] = mapped_column(Id, index=True)
    #: The token that the person logged in with, where it was no password: this one is good no longer than that one.
    by_token_id: Mapped[str | None] = mapped_column(Id, index=True)


class OAuthClient(Base):
    """A program that may ask for tokens, and acts as its user when it does so on its own."""

    __tablename__ = "oauth_clients"

    id: Mapped[str] = mapped_column(Id, primary_key=True)
    name: Mapped[str] = mapped_column(String(255))
    user_id: Mapped[str] = mapped_column(Id, ForeignKey("users.id"), index=True)
    secret_digest: Mapped[str] = mapped_column(String(64))
    redirect_uris: Mapped[list[str]] = mapped_column(JSON)
    created_at: Mapped[float] = mapped_column(Seconds)
    revoked_at: Mapped[float | None] = mapped_column(Seconds)


class AuthorizationCode(Base):
    """What a person's browser carries to the client after a login. Kept for a while, to notice a second use."""

    __tablename__ = "authorization_codes"

    id: Mapped[str] = mapped_column(Id, primary_key=True)
    digest: Mapped[str] = mapped_column(String(64), unique=True)
    client_id: Mapped[str] = mapped_column(Id)
    user_id: Mapped[str] = mapped_column(Id, ForeignKey("users.id"), index=True)
    redirect_uri: Mapped[str] = mapped_column(Text)
    scope: Mapped[str] = mapped_column(Text)
    nonce: Mapped[str | None] = mapped_column(Text)
    code_challenge: Mapped[str | None] = mapped_column(String(128))
    #: The token that the person logged in with, where it was no password.
    by_token_id: Mapped[str | None] = mapped_column(Id)
    #: Whether the client asked for refresh tokens.
    offline: Mapped[bool] = mapped_column(Boolean)
    created_at: Mapped[float] = mapped_column(Seconds)
    expires_at: Mapped[float] = mapped_column(Seconds, index=True)
    used_at: Mapped[float | None] = mapped_column(Seconds)


class RefreshToken(Base):
    """With it a client gets new access tokens of one resource server without the person."""

    __tablename__ = "refresh_tokens"

    id: Mapped[str] = mapped_column(Id, primary_key=True)
    digest: Mapped[str] = mapped_column(String(64), unique=True)
    client_id: Mapped[str] = mapped_column(Id, index=True)
    user_id: Mapped[str] = mapped_column(Id, ForeignKey("users.id"), index=True)
    grant_id: Mapped[str] = mapped_column(Id, index=True)
    #: As of an access token.
    by_token_id: Mapped[str | None] = mapped_column(Id, index=True)
    scope: Mapped[str] = mapped_column(Text)
    resource_server: Mapped[str] = mapped_column(String(255))
    created_at: Mapped[float] = mapped_column(Seconds)
    #: Moves with each use.
    expires_at: Mapped[float] = mapped_column(Seconds, index=True)
    revoked_at: Mapped[float | None] = mapped_column(Seconds)


class SigningKey(Base):
    """The key of a purpose, in PEM: every web process signs with the same one."""

    __tablename__ = "signing_keys"

    purpose: Mapped[str] = mapped_column(String(32), primary_key=True)
    private_pem: Mapped[str] = mapped_column(Text)
    created_at: Mapped[float] = mapped_column(Seconds)


class LoginFailure(Base):
    """How often passwords were tried in vain of late. ``subject`` is made of hashes of a name and an address."""

    __tablename__ = "login_failures"

    subject: Mapped[str] = mapped_column(String(64), primary_key=True)
    failures: Mapped[int] = mapped_column(Integer)
    last_at: Mapped[float] = mapped_column(Seconds, index=True)
    blocked_until: Mapped[float] = mapped_column(Seconds)


class Function(Base):
    """A registered callable. ``code`` is one packed buffer and never changes."""

    __tablename__ = "functions"

    id: Mapped[str] = mapped_column(Id, primary_key=True)
    owner_id: Mapped[str] = mapped_column(Id, ForeignKey("users.id"), index=True)
    name: Mapped[str] = mapped_column(Text)
    description: Mapped[str | None] = mapped_column(Text)
    code: Mapped[str] = mapped_column(Text)
    #: What the registration sent as ``meta`` or ``metadata``.
    details: Mapped[dict[str, Any] | None] = mapped_column(JSON)
    public: Mapped[bool] = mapped_column(Boolean, default=False)
    group_id: Mapped[str | None] = mapped_column(Id, index=True)
    created_at: Mapped[float] = mapped_column(Seconds)
    deleted_at: Mapped[float | None] = mapped_column(Seconds)


class Endpoint(Base):
    """A registered place that runs tasks, and what its agent last said of itself."""

    __tablename__ = "endpoints"

    id: Mapped[str] = mapped_column(Id, primary_key=True)
    owner_id: Mapped[str] = mapped_column(Id, ForeignKey("users.id"), index=True)
    name: Mapped[str] = mapped_column(Text)
    display_name: Mapped[str | None] = mapped_column(Text)
    public: Mapped[bool] = mapped_column(Boolean, default=False)
    #: Null = any function.
    allowed_functions: Mapped[list[str] | None] = mapped_column(JSON)
    #: The registration's ``metadata``: versions, host, configuration, ``accepts``, ``instance``.
    details: Mapped[dict[str, Any]] = mapped_column(JSON, default=dict)
    created_at: Mapped[float] = mapped_column(Seconds)
    registered_at: Mapped[float] = mapped_column(Seconds)
    last_heartbeat_at: Mapped[float | None] = mapped_column(Seconds)
    #: Seconds, from the last report; 0 = it said goodbye.
    heartbeat_period: Mapped[float | None] = mapped_column(Seconds)
    #: ``global_state`` of the last report.
    last_report: Mapped[dict[str, Any] | None] = mapped_column(JSON)
    locked_until: Mapped[float | None] = mapped_column(Seconds)
    deleted_at: Mapped[float | None] = mapped_column(Seconds)
    #: The host by which the agent reached the service, if that is how it should reach the broker too.
    reached_as: Mapped[str | None] = mapped_column(String(255))
    #: Of a user endpoint: the core endpoint that starts it. Nobody but the service knows such a row.
    parent_id: Mapped[str | None] = mapped_column(Id, index=True)
    user_endpoint_config: Mapped[dict[str, Any] | None] = mapped_column(JSON)
    #: See `children`.
    phase: Mapped[str | None] = mapped_column(String(10))
    awaited_since: Mapped[float | None] = mapped_column(Seconds)
    attempts: Mapped[int | None] = mapped_column(Integer)


class TaskGroup(Base):
    """The tasks that one client wants to hear about together."""

    __tablename__ = "task_groups"

    id: Mapped[str] = mapped_column(Id, primary_key=True)
    owner_id: Mapped[str] = mapped_column(Id, ForeignKey("users.id"), index=True)
    created_at: Mapped[float] = mapped_column(Seconds)
    #: The number of the group's latest result. Its row is locked while results are numbered, so that numbers become
    #: visible in their order, whoever commits first.
    last_result_seq: Mapped[int] = mapped_column(RowNumber, default=0)

    __table_args__ = (Index("ix_task_groups_created", "created_at"),)


class ResultQueue(Base):
    """That a group's results also go to a queue of the broker, and how far they have."""

    __tablename__ = "result_queues"

    task_group_id: Mapped[str] = mapped_column(Id, primary_key=True)
    #: The number of the latest result that the broker has confirmed.
    forwarded_seq: Mapped[int] = mapped_column(RowNumber, default=0)
    created_at: Mapped[float] = mapped_column(Seconds)


class Submission(Base):
    """One request's tasks for one endpoint: the unit that is dispatched."""

    __tablename__ = "submissions"

    id: Mapped[str] = mapped_column(Id, primary_key=True)
    owner_id: Mapped[str] = mapped_column(Id, ForeignKey("users.id"))
    endpoint_id: Mapped[str] = mapped_column(Id)
    task_group_id: Mapped[str] = mapped_column(Id)
    idempotency_key: Mapped[str | None] = mapped_column(String(128))
    #: SHA-256 of what came with the key, so that a key used for something else is noticed.
    digest: Mapped[str | None] = mapped_column(String(64))
    #: As of :class:`farcall.wire.BatchedTask`, where any were given.
    options: Mapped[dict[str, Any] | None] = mapped_column(JSON)
    created_at: Mapped[float] = mapped_column(Seconds)
    #: Null until the broker has confirmed the message.
    dispatched_at: Mapped[float | None] = mapped_column(Seconds)
    #: The ledger (one a process) whose dispatcher is to publish it, and until when others leave it alone.
    claimed_by: Mapped[str | None] = mapped_column(Id)
    claimed_until: Mapped[float | None] = mapped_column(Seconds)
    #: Not null while it is held back, because enough waits on the endpoint's queue. See `ledger.holding`.
    held_at: Mapped[float | None] = mapped_column(Seconds)
    task_count: Mapped[int | None] = mapped_column(Integer)

    __table_args__ = (
        UniqueConstraint("owner_id", "idempotency_key"),
        Index(
            "ix_submissions_undispatched",
            "created_at",
            sqlite_where=text("dispatched_at IS NULL AND held_at IS NULL"),
            postgresql_where=text("dispatched_at IS NULL AND held_at IS NULL"),
        ),
        Index(
            "ix_submissions_held",
            "endpoint_id",
            "created_at",
            sqlite_where=text("held_at IS NOT NULL"),
            postgresql_where=text("held_at IS NOT NULL"),
        ),
        Index("ix_submissions_created", "created_at"),
    )


class Task(Base):
    """One call of one function on one endpoint, and how it ended."""

    __tablename__ = "tasks"

    #: Counts up with time: the order of listings.
    seq: Mapped[int] = mapped_column(RowNumber, primary_key=True, autoincrement=True)
    id: Mapped[str] = mapped_column(Id, unique=True)
    owner_id: Mapped[str] = mapped_column(Id)
    submission_id: Mapped[str] = mapped_column(Id, index=True)
    task_group_id: Mapped[str] = mapped_column(Id)
    #: Where it was submitted to.
    endpoint_id: Mapped[str] = mapped_column(Id)
    #: Whose queue it is on and who may report of it: that endpoint, or a user endpoint of its.
    runner_id: Mapped[str] = mapped_column(Id)
    function_id: Mapped[str] = mapped_column(Id)
    payload: Mapped[str] = mapped_column(Text)
    #: Characters of it, when it was submitted.
    payload_size: Mapped[int | None] = mapped_column(Integer)
    state: Mapped[str] = mapped_column(String(20))
    #: A line a change; see `ledger.history`.
    history: Mapped[str] = mapped_column(Text)
    created_at: Mapped[float] = mapped_column(Seconds)
    changed_at: Mapped[float] = mapped_column(Seconds)
    completed_at: Mapped[float | None] = mapped_column(Seconds)
    #: The result's number within its group; null until there is one.
    result_seq: Mapped[int | None] = mapped_column(RowNumber)
    #: The serialised value, or the text of the traceback.
    outcome: Mapped[str | None] = mapped_column(Text)
    #: Characters of ``outcome`` and ``exception_object``, so that answers can be kept to a size.
    outcome_size: Mapped[int | None] = mapped_column(Integer)
    error_code: Mapped[str | None] = mapped_column(String(100))
    exception_object: Mapped[str | None] = mapped_column(Text)
    #: The worker's ``details``.
    details: Mapped[dict[str, Any] | None] = mapped_column(JSON)

    __table_args__ = (
        Index("ix_tasks_group_results", "task_group_id", "result_seq"),
        Index("ix_tasks_owner", "owner_id", "seq"),
        Index(
            "ix_tasks_unfinished",
            "runner_id",
            "state",
            "seq",
            # So that what is on a queue is added up from the index alone. SQLite wants that of its condition too.
            "payload_size",
            "completed_at",
            sqlite_where=text("completed_at IS NULL"),
            postgresql_where=text("completed_at IS NULL"),
        ),
        # For what is removed when it is old enough.
        Index(
            "ix_tasks_inactive",
            "changed_at",
            sqlite_where=text("completed_at IS NULL"),
            postgresql_where=text("completed_at IS NULL"),
        ),
        Index(
            "ix_tasks_completed",
            "completed_at",
            sqlite_where=text("completed_at IS NOT NULL"),
            postgresql_where=text("completed_at IS NOT NULL"),
        ),
    )


class Cancellation(Base):
    """That a task has been ended from here while its agent may have it, and the agent has yet to say that it knows."""

    __tablename__ = "cancellations"

    task_id: Mapped[str] = mapped_column(Id, primary_key=True)
    runner_id: Mapped[str] = mapped_column(Id)
    created_at: Mapped[float] = mapped_column(Seconds)

    __table_args__ = (
        Index("ix_cancellations_runner", "runner_id", "created_at"),
        Index("ix_cancellations_created", "created_at"),
    )


class TaskOutput(Base):
    """A piece of what a task has printed. Pieces may overlap, and some may be missing."""

    __tablename__ = "task_output"

    task_id: Mapped[str] = mapped_column(Id, primary_key=True)
    stream: Mapped[str] = mapped_column(String(6), primary_key=True)
    #: The place of the piece's first character, counted from the task's first.
    start: Mapped[int] = mapped_column(BigInteger, primary_key=True, autoincrement=False)
    #: The place after its last character.
    until: Mapped[int] = mapped_column(BigInteger)
    text: Mapped[str] = mapped_column(Text)


class Secret(Base):
    """What the processes of a service know together and nobody else does."""

    __tablename__ = "secrets"

    name: Mapped[str] = mapped_column(String(100), primary_key=True)
    value: Mapped[str] = mapped_column(Text)

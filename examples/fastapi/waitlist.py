"""A waitlist's signup that asks for its verification mail in the transaction that writes the person down.

The mail goes if and only if the person is on the list: nothing is published when the transaction fails, and nothing is
lost when the process dies after it has committed. `relay` publishes the event within a second or two.

    DATABASE_URL=postgresql://... uvicorn waitlist:app
"""

import os
import secrets
from collections.abc import Iterator
from contextlib import asynccontextmanager
from typing import Annotated, Any
from uuid import UUID, uuid4

import psycopg
from fastapi import Depends, FastAPI, HTTPException, Request
from psycopg.errors import ForeignKeyViolation, UniqueViolation
from psycopg_pool import ConnectionPool
from pydantic import BaseModel, EmailStr, Field

from campaign_jobs import outbox
from campaign_jobs.events import EmailJobPayload


@asynccontextmanager
async def with_pool(app: FastAPI) -> Any:
    with ConnectionPool(os.environ["DATABASE_URL"], max_size=10) as pool:
        app.state.pool = pool
        yield


app = FastAPI(title="Waitlist", lifespan=with_pool)


def transaction(request: Request) -> Iterator[psycopg.Connection]:
    """One for each request: it commits before the answer is sent, and rolls back where the request fails."""
    with request.app.state.pool.connection() as connection:
        yield connection


Transaction = Annotated[psycopg.Connection, Depends(transaction, scope="function")]


class Signup(BaseModel):
    email: EmailStr
    # What its column takes (docs/data-contract.md); PostgreSQL's text holds no NUL.
    first_name: Annotated[str, Field(max_length=100, pattern=r"^[^\x00]*$")] | None = None


class Accepted(BaseModel):
    message: str = "Look into your inbox."


# Two signups at a time must not take the same place.
NEXT_POSITION = """
SELECT coalesce(max(original_position), 0) + 1 FROM campaign_jobs.waitlist_users WHERE campaign_id = %s
"""
ADD = """
INSERT INTO campaign_jobs.waitlist_users (id, campaign_id, email, first_name, original_position, verification_token)
VALUES (%s, %s, %s, %s, %s, %s)
"""


@app.post("/campaigns/{campaign_id}/signups", status_code=202)
def sign_up(campaign_id: UUID, signup: Signup, connection: Transaction) -> Accepted:
    """The answer is the same whether the address is new or not, so that nobody learns who is on the list."""
    user_id = uuid4()
    connection.execute("SELECT pg_advisory_xact_lock(hashtextextended(%s, 0))", [str(campaign_id)])
    position = connection.execute(NEXT_POSITION, [campaign_id]).fetchone()
    assert position is not None
    values = [user_id, campaign_id, signup.email, signup.first_name, *position, secrets.token_urlsafe(24)]
    try:
        # A savepoint, because a statement that fails would end the whole transaction.
        with connection.transaction():
            connection.execute(ADD, values)
    except UniqueViolation as error:
        if error.diag.constraint_name != "waitlist_users_one_per_email":
            raise
        return Accepted()
    except ForeignKeyViolation as error:
        raise HTTPException(404, "There is no such campaign.") from error
    outbox.enqueue(
        connection,
        [EmailJobPayload(type="verification", campaign_id=campaign_id, user_id=user_id, priority=1)],
    )
    return Accepted()

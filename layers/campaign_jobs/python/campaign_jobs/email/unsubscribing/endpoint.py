"""What answers an unsubscribe link: GET asks, POST unsubscribes.

Link scanners follow every link of a mail, so GET changes nothing and opens no connection. POST is the page's button, or
a mail provider's one-click request (RFC 8058), which knows neither cookies nor redirects; what stands in its body does
not matter, since the token says everything. A token is checked before anything else is touched. A user who is no
longer there gets the same answer as one who is.
"""

from collections.abc import Mapping
from functools import cached_property
from typing import TYPE_CHECKING, Any, Final, NamedTuple
from uuid import UUID

from campaign_jobs.catalog import UNSUBSCRIBE
from campaign_jobs.email.unsubscribing import pages
from campaign_jobs.email.unsubscribing.keys import KeyRing
from campaign_jobs.email.unsubscribing.links import PARAMETER, PATH
from campaign_jobs.email.unsubscribing.token import verify
from campaign_jobs.errors import BatchStopped, DatabaseUnavailable
from campaign_jobs.observability import logger_of, publish_metrics
from campaign_jobs.settings import UnsubscribeSettings

if TYPE_CHECKING:
    from campaign_jobs.database.connection import Database

RETRY_AFTER_SECONDS: Final = 60

_UNSUBSCRIBE: Final = """
INSERT INTO campaign_jobs.email_unsubscribes (user_id)
SELECT id FROM campaign_jobs.waitlist_users WHERE id = %s FOR KEY SHARE
ON CONFLICT (user_id) DO NOTHING
"""


class _Answer(NamedTuple):
    status: int
    page: str
    counted: str
    """The metric that counts such answers."""
    headers: Mapping[str, str] = {}


_ASKED: Final = _Answer(200, pages.ASK, "asked")
_DONE: Final = _Answer(200, pages.DONE, "unsubscribed")
_NOT_FOUND: Final = _Answer(404, pages.NOT_FOUND, "refused")
_NOT_ALLOWED: Final = _Answer(405, pages.NOT_ALLOWED, "refused", {"allow": "GET, HEAD, POST"})
_TRY_AGAIN: Final = _Answer(503, pages.TRY_AGAIN, "unavailable", {"retry-after": str(RETRY_AFTER_SECONDS)})


class UnsubscribeEndpoint:
    """Answers the requests of a Lambda function URL (payload format 2.0)."""

    def __init__(self, settings: UnsubscribeSettings) -> None:
        self._settings = settings
        self._keys = KeyRing.from_settings(settings)
        self._logger = logger_of(UNSUBSCRIBE.name)

    @cached_property
    def _database(self) -> "Database":
        # With it comes psycopg, which only a POST with a good token needs.
        from campaign_jobs.database.connection import Database

        return Database.from_settings(
            self._settings,
            application_name="campaign-jobs-unsubscribe",
            timeout_seconds=UNSUBSCRIBE.timeout_seconds,
        )

    def handle(self, event: Mapping[str, Any]) -> dict[str, Any]:
        method = event["requestContext"]["http"]["method"]
        try:
            answer = self._answer(method, event)
        except BatchStopped as error:
            self._logger.error("unsubscribing does not work now", extra={"reason": str(error)})
            answer = _TRY_AGAIN
        publish_metrics(UNSUBSCRIBE.name, {answer.counted: 1})
        return {
            "statusCode": answer.status,
            "headers": {**pages.HEADERS, **answer.headers},
            "body": "" if method == "HEAD" else answer.page,
        }

    def _answer(self, method: str, event: Mapping[str, Any]) -> _Answer:
        if event["rawPath"] != PATH:
            return _NOT_FOUND
        if method not in ("GET", "HEAD", "POST"):
            return _NOT_ALLOWED
        user_id = self._user_of((event.get("queryStringParameters") or {}).get(PARAMETER, ""))
        if user_id is None:
            return _NOT_FOUND
        if method != "POST":
            return _ASKED
        self._unsubscribe(user_id)
        return _DONE

    def _user_of(self, token: str) -> UUID | None:
        # A key that was put in front meanwhile is looked for, before its token is taken for a foreign one.
        return verify(token, self._keys.current()) or verify(token, self._keys.newest())

    def _unsubscribe(self, user_id: UUID) -> None:
        import psycopg

        try:
            with self._database.transaction() as connection:
                added = connection.execute(_UNSUBSCRIBE, (user_id,)).rowcount
        except psycopg.OperationalError as error:
            # The user's row is locked for too long, say; the same request succeeds later.
            raise DatabaseUnavailable(f"PostgreSQL did not finish: {type(error).__name__}") from error
        self._logger.info("unsubscribed", extra={"user_id": str(user_id), "rows": added})

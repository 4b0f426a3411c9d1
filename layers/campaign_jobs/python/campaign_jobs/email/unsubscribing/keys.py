"""The keys of unsubscribe links: from the settings, or from a secret that an operator may rotate.

The first key signs and all of them verify. To rotate, put a new key in front of the old one, separated by a comma, and
leave the old one there as long as people may open old mail. Mails are signed with the new key within an hour; a token
that no known key has signed makes the endpoint look again, at most once a minute. A key that is taken away is refused
within an hour.
"""

import time
from collections.abc import Callable
from typing import Final

from campaign_jobs.errors import KeysUnavailable
from campaign_jobs.settings import UnsubscribeKeySettings, signing_keys

KEPT_SECONDS: Final = 3600
"""So long keys are used without a look at the secret."""
LOOK_AGAIN_SECONDS: Final = 60
"""So often, at most, an unknown token or a failure makes us look."""

Keys = tuple[bytes, ...]


class KeyRing:
    """The keys, read when they are first needed."""

    def __init__(self, read: Callable[[], Keys], *, clock: Callable[[], float] = time.time) -> None:
        """`clock` counts seconds, those included in which the process was frozen."""
        self._read = read
        self._clock = clock
        self._keys: Keys = ()
        self._looked_at = float("-inf")
        self._failure: KeysUnavailable | None = None

    @classmethod
    def from_settings(cls, settings: UnsubscribeKeySettings) -> "KeyRing":
        keys = settings.unsubscribe_keys
        if keys is not None:
            return cls(lambda: keys)
        arn = str(settings.unsubscribe_keys_secret_arn)
        return cls(lambda: _keys_from_secret(arn))

    def current(self) -> Keys:
        """The keys, at most an hour old, or older where they cannot be read again.

        Raises KeysUnavailable when they have never been read.
        """
        try:
            return self._not_older_than(KEPT_SECONDS)
        except KeysUnavailable:
            if not self._keys:
                raise
            return self._keys

    def newest(self) -> Keys:
        """The keys, at most a minute old. Raises KeysUnavailable when they cannot be read."""
        return self._not_older_than(LOOK_AGAIN_SECONDS)

    def _not_older_than(self, seconds: float) -> Keys:
        now = self._clock()
        if now - self._looked_at >= (seconds if self._failure is None else LOOK_AGAIN_SECONDS):
            self._looked_at = now
            try:
                self._keys, self._failure = self._read(), None
            except KeysUnavailable as error:
                self._failure = error
        if self._failure is not None:
            raise KeysUnavailable(str(self._failure)) from self._failure
        return self._keys


def _keys_from_secret(arn: str) -> Keys:
    import boto3
    from botocore.config import Config
    from botocore.exceptions import BotoCoreError, ClientError

    patience = Config(connect_timeout=3, read_timeout=5, retries={"total_max_attempts": 2})
    try:
        answer = boto3.client("secretsmanager", config=patience).get_secret_value(SecretId=arn)
        return signing_keys(answer["SecretString"])
    except (BotoCoreError, ClientError, KeyError, ValueError) as error:
        # Its text could hold parts of the secret.
        raise KeysUnavailable(
            f"the keys of unsubscribe links cannot be read: {type(error).__name__}"
        ) from None

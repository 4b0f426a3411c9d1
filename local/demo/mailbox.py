"""What becomes of mails at their receivers: some bounce, one annoys, and links are followed, by scanners too."""

import re
from collections.abc import Callable
from dataclasses import dataclass
from email.parser import HeaderParser
from http.client import HTTPConnection
from itertools import islice
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

from local.aws import Answer, ScriptLine
from local.aws.mails import Mail, read_mails
from local.demo.cast import Cast, Person

# Of those who do not unsubscribe; enough to see that a look changes nothing, however many people there are.
SCANNED_BESIDES: Final = 20
_TIMEOUT_SECONDS: Final = 30
_FORM: Final = {"Content-Type": "application/x-www-form-urlencoded"}


@dataclass(frozen=True)
class Unsubscribing:
    """What following the links led to."""

    last_mail: int
    """The number of the last mail before."""
    opened: dict[str, int]
    """By address, the HTTP status of the page."""
    not_shown: set[str]
    """The addresses whose mail shows another link than its header has."""
    before: set[str]
    after_opening: set[str]
    """Who was unsubscribed then."""
    clicked: dict[str, int]
    """By person, the HTTP status of the one-click request."""


def bounces(cast: Cast) -> list[ScriptLine]:
    """What SES plays so that the dead addresses bounce."""
    return [_line(person, Answer.BOUNCE) for person in cast.people.values() if person.bounces]


def complaints(cast: Cast) -> list[ScriptLine]:
    """What SES plays so that whoever complains does so about each mail from now on."""
    return [_line(person, Answer.COMPLAINT) for person in cast.people.values() if person.complains]


def _line(person: Person, answer: Answer) -> ScriptLine:
    return ScriptLine(f"^{re.escape(person.email)}$", answer)


def unsubscribe(cast: Cast, mail_directory: Path, unsubscribed: Callable[[], set[str]]) -> Unsubscribing:
    """Open the links as a scanner does that looks for viruses, and let those unsubscribe who want to.

    `unsubscribed` tells who is, now.
    """
    mails = read_mails(mail_directory)
    newest = {mail.to[0]: mail for mail in mails if "List-Unsubscribe" in mail.headers}
    people = [person for person in cast.people.values() if person.unsubscribes and person.email in newest]
    theirs = {person.email for person in people}
    others = islice((address for address in newest if address not in theirs), SCANNED_BESIDES)
    links = {address: _read(mail_directory, newest[address]) for address in [*others, *theirs]}
    before = unsubscribed()
    opened = {address: link.open() for address, link in links.items()}
    after_opening = unsubscribed()
    return Unsubscribing(
        last_mail=mails[-1].number if mails else 0,
        opened=opened,
        not_shown={address for address, link in links.items() if not link.is_shown},
        before=before,
        after_opening=after_opening,
        clicked={person.key: links[person.email].click() for person in people},
    )


@dataclass(frozen=True)
class _Link:
    url: str
    one_click: str
    is_shown: bool

    def open(self) -> int:
        return self._request("GET")

    def click(self) -> int:
        """As a mail provider does for a person, RFC 8058: no cookies, no redirects."""
        return self._request("POST", self.one_click)

    def _request(self, method: str, body: str | None = None) -> int:
        parts = urlsplit(self.url)
        connection = HTTPConnection(parts.netloc, timeout=_TIMEOUT_SECONDS)
        try:
            connection.request(method, f"{parts.path}?{parts.query}", body, {} if body is None else _FORM)
            answer = connection.getresponse()
            answer.read()
            return answer.status
        finally:
            connection.close()


def _read(mail_directory: Path, mail: Mail) -> _Link:
    """From the mail's file, which is what its receiver has."""
    message = HeaderParser().parsestr((mail_directory / mail.text_file).read_text(encoding="utf-8-sig"))
    url = message["List-Unsubscribe"].strip("<>")
    return _Link(url, message["List-Unsubscribe-Post"], url in message.get_payload())

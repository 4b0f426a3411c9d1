"""The mails that SES accepted, as files: open index.html in the mail directory to read them."""

import json
import re
import threading
from dataclasses import asdict, dataclass
from email.utils import parseaddr
from pathlib import Path
from typing import Any, Final

from jinja2 import Environment, FileSystemLoader

_INDEX_SECONDS: Final = 1.0
_INDEX_LENGTH: Final = 1_000
_NAME_LENGTH: Final = 60

# Some readers guess a wrong encoding for a file without any hint of it; none does with a byte order mark.
_ENCODING: Final = "utf-8-sig"


@dataclass(frozen=True)
class Mail:
    """One accepted mail, as a line of mails.jsonl has it."""

    number: int
    message_id: str
    sender: str
    to: list[str]
    reply_to: list[str]
    subject: str
    headers: dict[str, str]
    tags: dict[str, str]
    html_file: str | None
    text_file: str


class MailDirectory:
    """Writes each mail as NNNN-<type>-<recipient>.html and .txt, a line of mails.jsonl, and lists them in index.html.

    Numbers go on where an earlier run over the same directory ended. Safe to use from several threads.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        directory.mkdir(parents=True, exist_ok=True)
        self._journal = directory / "mails.jsonl"
        self._mails = read_mails(directory)
        self._number = max((mail.number for mail in self._mails), default=0)
        self._lock = threading.Lock()
        self._changed = threading.Event()
        self._closed = threading.Event()
        environment = Environment(loader=FileSystemLoader(Path(__file__).parent), autoescape=True)
        self._template = environment.get_template("index.html.jinja")
        self._write_index()
        self._writer = threading.Thread(target=self._keep_index, name="mail index", daemon=True)
        self._writer.start()

    def add(self, request: dict[str, Any], message_id: str) -> Mail:
        """Write the mail of an accepted SendEmail request (`Content.Simple`)."""
        with self._lock:
            self._number += 1
            number = self._number
        simple = request["Content"]["Simple"]
        destination = request.get("Destination", {})
        to = [
            address
            for kind in ("ToAddresses", "CcAddresses", "BccAddresses")
            for address in destination.get(kind, [])
        ]
        tags = {tag["Name"]: tag["Value"] for tag in request.get("EmailTags", [])}
        subject = simple["Subject"]["Data"]
        html = simple["Body"].get("Html", {}).get("Data")
        recipient = parseaddr(to[0])[1] if to else "nobody"
        name = f"{number:04d}-{_slug(tags.get('type') or subject)}-{_slug(recipient)}"
        mail = Mail(
            number=number,
            message_id=message_id,
            sender=request.get("FromEmailAddress", ""),
            to=to,
            reply_to=request.get("ReplyToAddresses", []),
            subject=subject,
            headers={header["Name"]: header["Value"] for header in simple.get("Headers", [])},
            tags=tags,
            html_file=None if html is None else f"{name}.html",
            text_file=f"{name}.txt",
        )
        if html is not None:
            (self.directory / f"{name}.html").write_text(html, encoding=_ENCODING)
        text = simple["Body"].get("Text", {}).get("Data", "")
        (self.directory / mail.text_file).write_text(f"{_head(mail)}\n\n{text}", encoding=_ENCODING)
        with self._lock:
            # Last, so that whoever reads the journal finds the files.
            with self._journal.open("a", encoding="utf-8") as journal:
                journal.write(json.dumps(asdict(mail)) + "\n")
            self._mails.append(mail)
        self._changed.set()
        return mail

    def close(self) -> None:
        """Bring the index up to date for the last time."""
        self._closed.set()
        self._changed.set()
        self._writer.join()

    def _keep_index(self) -> None:
        # A large index is not written for each mail of a burst, but once in a while.
        while not self._closed.is_set():
            self._changed.wait()
            self._closed.wait(_INDEX_SECONDS)
            self._changed.clear()
            self._write_index()

    def _write_index(self) -> None:
        with self._lock:
            total, newest = len(self._mails), self._mails[-_INDEX_LENGTH:]
        page = self._template.render(mails=reversed(newest), total=total, earlier=total - len(newest))
        draft = self.directory / "index.html.new"
        draft.write_text(page, encoding="utf-8")
        draft.replace(self.directory / "index.html")


def read_mails(directory: Path) -> list[Mail]:
    """All mails of a mail directory, in the order of their numbers."""
    journal = directory / "mails.jsonl"
    if not journal.exists():
        return []
    # A line that a crash cut short has no end, and its mail's answer was never given.
    lines = journal.read_text(encoding="utf-8").split("\n")[:-1]
    # Of two at the same time, either may come into the journal first.
    return sorted((Mail(**json.loads(line)) for line in lines), key=lambda mail: mail.number)


def _head(mail: Mail) -> str:
    fields = {
        "From": mail.sender,
        "To": ", ".join(mail.to),
        "Reply-To": ", ".join(mail.reply_to),
        "Subject": mail.subject,
        **mail.headers,
        "Tags": ", ".join(f"{name}={value}" for name, value in mail.tags.items()),
        "Message-ID": mail.message_id,
    }
    return "\n".join(f"{name}: {value}" for name, value in fields.items() if value)


def _slug(text: str) -> str:
    """A part of a file name: nothing in it leads to another directory or needs quoting."""
    return re.sub(r"[^a-z0-9@+_.]+", "-", text.lower()[:_NAME_LENGTH]).strip("-.") or "mail"

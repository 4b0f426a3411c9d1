"""Any template is refused with an error that names it, or makes a mail that keeps to the rules of mails."""

import re

from campaign_jobs.email.rendering import (
    MAX_PART_CHARACTERS,
    MAX_SUBJECT_CHARACTERS,
    Template,
    render,
    sample_context,
    validate,
)
from campaign_jobs.errors import TemplateError

PERSON = '"><script>alert(1)</script>\r\nBcc: all@example.com'


def run(data: bytes) -> None:
    """The parts are separated by a byte of 0xff, which UTF-8 has not."""
    subject, html, text, *_ = [part.decode("utf-8", "replace") for part in data.split(b"\xff")] + [
        "x",
        "x",
        "x",
    ]
    template = Template("fuzzed", subject, html, text)
    try:
        validate(template, "welcome")
    except TemplateError as error:
        assert 'template "fuzzed"' in str(error)
    try:
        mail = render(template, {**sample_context("welcome"), "user_first_name": PERSON})
    except TemplateError as error:
        assert 'template "fuzzed"' in str(error)
        assert PERSON not in str(error)
        return
    assert mail.subject and len(mail.subject) <= MAX_SUBJECT_CHARACTERS
    assert len(mail.subject.splitlines()) == 1
    for part in (mail.subject, mail.html, mail.text):
        assert len(part) <= MAX_PART_CHARACTERS
        assert not re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f]", part)
        part.encode("utf-8")
    # What a person calls themselves is never markup, whatever the template does with it.
    assert "<script>alert(1)" not in mail.html or "<script>alert(1)" in html

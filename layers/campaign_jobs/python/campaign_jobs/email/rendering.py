"""From a template and what it may say to the finished mail.

The five built-in templates lie beside this module in ``templates/``, whose README.md lists the values that
a template is given. A campaign's own templates are written by tenants and rendered by the same rules: the
language is the bounded one of `sandbox`, every value in the HTML part is escaped, and what comes out is
checked:

- each part is at most 500,000 characters long, without control characters;
- the subject is one line of at most 250 characters, so that it cannot add a header;
- links in the HTML part lead to http, https, mailto or tel, and images to http, https or cid.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from importlib import resources
from types import TracebackType
from typing import Final

import jinja2
from jinja2 import nodes
from jinja2.exceptions import SecurityError

from campaign_jobs.email import sandbox
from campaign_jobs.email.samples import EMAIL_TYPES, NOTHING, check_type, minimum_context, sample_context
from campaign_jobs.errors import TemplateError

__all__ = [
    "EMAIL_TYPES",
    "NOTHING",
    "RenderedEmail",
    "Template",
    "built_in",
    "minimum_context",
    "render",
    "sample_context",
    "validate",
]

MAX_PART_CHARACTERS: Final = 500_000
MAX_SUBJECT_CHARACTERS: Final = 250
MAX_LINKS: Final = 1_000

# What would end a line, disturb a mail or cannot be encoded; the HTML and text parts keep tabs and newlines.
_CONTROL_CHARACTERS: Final = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff]")
_DIRECTION_OVERRIDES: Final = re.compile("[\u202a-\u202e]")
_LINK: Final = re.compile(
    r"""\b(href|src|action|formaction|background)\s*=\s*("[^"]*"|'[^']*'|[^\s"'>]*)""",
    re.IGNORECASE,
)
# A tag from its beginning to its end, which is not a ">" inside quotes.
_WHOLE_TAG: Final = re.compile(r"""<[^>"']*(?:"[^"]*"[^>"']*|'[^']*'[^>"']*)*>""")
_LONGEST_TAG: Final = 4_000  # whatever follows a longer one is checked as if the tag went on
_LINK_SCHEMES: Final = ("http:", "https:", "mailto:", "tel:")
_IMAGE_SCHEMES: Final = ("http:", "https:", "cid:")


@dataclass(frozen=True, slots=True)
class Template:
    """The sources of a mail; `name` is what errors call it, such as "built-in verification"."""

    name: str
    subject: str
    html: str
    text: str


@dataclass(frozen=True, slots=True)
class RenderedEmail:
    """A mail's content, ready to be sent: a subject of one line, and the body in HTML and in plain text."""

    subject: str
    html: str
    text: str


@dataclass(frozen=True, slots=True)
class _Problem:
    cause: str
    line: int | None


def render(template: Template, context: Mapping[str, object]) -> RenderedEmail:
    """The mail that `template` makes of `context`.

    The context holds plain values: text, numbers, None, and under ``data`` and ``reward_data`` a flat
    mapping of them (nested ones are left out). What it does not mention is empty, as in `NOTHING`.

    Raises:
        TemplateError: the template is broken, does too much, or makes a mail that must not be sent.
    """
    values = {**NOTHING, **{name: value for name, value in context.items() if value is not None}}
    values = {name: _plain(name, value) for name, value in values.items()}
    return RenderedEmail(
        subject=_subject(template, _render_part(template, "subject", template.subject, values)),
        html=_checked_links(template, _render_part(template, "html", template.html, values)),
        text=_render_part(template, "text", template.text, values),
    )


@lru_cache(maxsize=len(EMAIL_TYPES))
def built_in(email_type: str) -> Template:
    """The template for mails of this type that has no other.

    Raises:
        TemplateError: there is no such type.
    """
    check_type(email_type)
    return Template(
        name=f"built-in {email_type}",
        subject=_file(f"{email_type}/subject.txt"),
        html=_file(f"{email_type}/body.html"),
        text=_file(f"{email_type}/body.txt"),
    )


def validate(template: Template, email_type: str, data: Mapping[str, object] | None = None) -> None:
    """Find out before a template is enabled whether it will work.

    It is rendered with the sample context and with the least that a mail of its type is given, and must not
    mention a name that no mail is given. A field of ``data`` or ``reward_data`` is taken to be there and to
    be text, because only the service that publishes the event, or the reward, knows; `data` gives examples
    where that will not do.

    Raises:
        TemplateError: it would not work; the message names the template, the part, the line and the cause.
    """
    for part, source in (
        ("subject", template.subject),
        ("html", template.html),
        ("text", template.text),
    ):
        _check_names(template, part, source)
    for context in (sample_context(email_type), minimum_context(email_type)):
        for name in ("data", "reward_data"):
            given = context.get(name, {})
            assert isinstance(given, dict)
            context[name] = {**_fields_used(template, name), **given, **(data or {})}
        render(template, context)


def _file(path: str) -> str:
    return resources.files(__package__).joinpath("templates", path).read_text(encoding="utf-8")


_ENVIRONMENTS: Final = {
    layout: sandbox.TemplateEnvironment(
        autoescape=layout.endswith(".html"),
        layout=layout,
        loader=jinja2.FunctionLoader({layout: _file(layout)}.get),
    )
    for layout in ("base.html", "base.txt")
}


def _environment(part: str) -> sandbox.TemplateEnvironment:
    return _ENVIRONMENTS["base.html" if part == "html" else "base.txt"]


@lru_cache(maxsize=256)
def _compile(part: str, source: str) -> jinja2.Template | _Problem:
    """A template is compiled once, and a broken one is read once: a batch may name it a thousand times."""
    try:
        return _environment(part).from_string(source)
    except jinja2.TemplateSyntaxError as error:
        return _Problem(error.message or "it does not follow the template language", error.lineno)
    except RecursionError:
        return _Problem("it is too deeply nested", None)
    except (SyntaxError, ValueError, OverflowError) as error:
        # What Jinja2's parser lets through and Python does not take, a number of 5,000 digits for example.
        return _Problem(f"it cannot be compiled: {error}", None)


def _render_part(template: Template, part: str, source: str, values: Mapping[str, object]) -> str:
    compiled = _compile(part, source)
    if isinstance(compiled, _Problem):
        raise _error(template, part, compiled)
    pieces: list[str] = []
    length = 0
    context = compiled.new_context({**values, sandbox.STEPS_NAME: sandbox.Steps()})
    try:
        for piece in compiled.root_render_func(context):
            pieces.append(piece)
            length += len(piece)
            if length > MAX_PART_CHARACTERS:
                raise SecurityError(f"it becomes longer than {MAX_PART_CHARACTERS} characters")
    except (
        jinja2.TemplateError,
        TypeError,
        ValueError,
        ArithmeticError,
        LookupError,
        RecursionError,
    ) as error:
        line = _line(compiled, error.__traceback__)
        raise _error(template, part, _Problem(_cause(error), line)) from None
    return _CONTROL_CHARACTERS.sub("", "".join(pieces))


def _cause(error: Exception) -> str:
    """What went wrong, without what the template was given: these errors may repeat a person's address."""
    if str(error) and not isinstance(error, (ValueError, LookupError)):
        return str(error)
    return f"a value does not fit what is done with it ({type(error).__name__})"


def _line(compiled: jinja2.Template, traceback: TracebackType | None) -> int | None:
    """The line of the source that was being rendered, from the last frame that belongs to this template."""
    line = None
    while traceback is not None:
        if traceback.tb_frame.f_globals.get("__jinja_template__") is compiled:
            line = compiled.get_corresponding_lineno(traceback.tb_lineno)
        traceback = traceback.tb_next
    return line


def _error(template: Template, part: str, problem: _Problem) -> TemplateError:
    where = part if problem.line is None else f"{part}, line {problem.line}"
    return TemplateError(f'template "{template.name}", {where}: {problem.cause}')


def _plain(name: str, value: object) -> object:
    if isinstance(value, Mapping):
        return {str(key): item for key, item in value.items() if _is_plain(item)}
    if not _is_plain(value):
        raise TypeError(
            f"{name} is of type {type(value).__name__}; templates are given text, numbers and flat mappings"
        )
    return value


def _is_plain(value: object) -> bool:
    # Exact types: a str that says of itself that it is safe HTML must not get past escaping.
    return value is None or type(value) in (str, int, float, bool)


def _subject(template: Template, rendered: str) -> str:
    subject = " ".join(_DIRECTION_OVERRIDES.sub("", rendered).split())
    if not subject:
        raise _error(template, "subject", _Problem("it is empty", 1))
    if len(subject) > MAX_SUBJECT_CHARACTERS:
        subject = subject[: MAX_SUBJECT_CHARACTERS - 1].rstrip() + "…"
    return subject


def _checked_links(template: Template, rendered: str) -> str:
    position = links = 0
    while link := _LINK.search(rendered, position):
        links += 1
        if links > MAX_LINKS:
            raise _error(template, "html", _Problem(f"it has more than {MAX_LINKS} links", None))
        # Not every "src=" is a link: after a tag has ended and before the next begins, it is what people read.
        tag = rendered.rfind("<", 0, link.start())
        if tag < 0 or _WHOLE_TAG.match(rendered, tag, min(link.start(), tag + _LONGEST_TAG)):
            position = link.end(1)
            continue
        position = link.end()
        attribute = link[1].lower()
        target = link[2].strip("\"'").strip()
        allowed = _IMAGE_SCHEMES if attribute in ("src", "background") else _LINK_SCHEMES
        if target.lower().startswith(allowed) or (attribute == "href" and target.startswith("#")):
            continue
        line = rendered.count("\n", 0, link.start()) + 1
        cause = (
            f"{attribute} {_beginning(target)} in line {line} of what it renders;"
            f" it must begin with {' or '.join(allowed)}"
        )
        raise _error(
            template,
            "html",
            _Problem(cause, _source_line(template.html, attribute, target)),
        )
    return rendered


def _beginning(target: str) -> str:
    """How a link begins, without the rest, which may be a person's address."""
    scheme = re.match(r"[A-Za-z][A-Za-z0-9+.-]{0,20}:", target)
    return f"begins with {scheme[0]!r}" if scheme else "names no scheme"


def _source_line(source: str, attribute: str, target: str) -> int | None:
    """The line of the only attribute in the source that can have become this one, where there is but one."""
    candidates = [
        link
        for link in _LINK.finditer(source)
        if link[1].lower() == attribute and ("{" in link[2] or link[2].strip("\"'").strip() == target)
    ]
    return source.count("\n", 0, candidates[0].start()) + 1 if len(candidates) == 1 else None


def _check_names(template: Template, part: str, source: str) -> None:
    compiled = _compile(part, source)
    if isinstance(compiled, _Problem):
        raise _error(template, part, compiled)
    tree = _environment(part).parse(source)
    names = list(tree.find_all(nodes.Name))
    known = {
        *NOTHING,
        "range",
        "loop",
        *(node.name for node in names if node.ctx == "store"),
    }
    for node in names:
        if node.name not in known:
            cause = f"there is no value {node.name!r}; templates are given {', '.join(NOTHING)}"
            raise _error(template, part, _Problem(cause, node.lineno))


def _fields_used(template: Template, name: str) -> dict[str, object]:
    """A made-up value for each field that the template reads from the mapping `name`."""
    fields: dict[str, object] = {}
    for part, source in (("subject", template.subject), ("html", template.html), ("text", template.text)):
        tree = _environment(part).parse(source)
        used: list[tuple[nodes.Node, object]] = [
            (node.node, node.attr) for node in tree.find_all(nodes.Getattr)
        ]
        used += [
            (node.node, node.arg.value)
            for node in tree.find_all(nodes.Getitem)
            if isinstance(node.arg, nodes.Const)
        ]
        for owner, field in used:
            if isinstance(owner, nodes.Name) and owner.name == name:
                # A link, so that it may stand where a link must.
                fields[str(field)] = f"https://example.com/{field}"
    return fields

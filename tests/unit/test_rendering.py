"""Email templates: the built-in ones, what tenants may do, and what must never leave."""

import html
import re
import tracemalloc
from html.parser import HTMLParser

import pytest
from hypothesis import given
from hypothesis import strategies as st

from campaign_jobs.email import rendering
from campaign_jobs.email.rendering import (
    EMAIL_TYPES,
    RenderedEmail,
    Template,
    built_in,
    minimum_context,
    render,
    sample_context,
    validate,
)
from campaign_jobs.errors import TemplateError

# What each type's mail is for: a reader of the plain text must find it too.
MAIN_LINK = {
    "verification": "verification_url",
    "welcome": "referral_url",
    "position_update": "referral_url",
    "milestone": "referral_url",
}


def template(*, subject: str = "Hello", html: str = "<p>Hello</p>", text: str = "Hello") -> Template:
    return Template(name="campaign c1 welcome v3", subject=subject, html=html, text=text)


def problem(made: Template, **context: object) -> str:
    with pytest.raises(TemplateError) as error:
        render(made, context)
    return str(error.value)


class Tags(HTMLParser):
    """Opens and closes every tag, and remembers what a mail client would find."""

    VOID = frozenset({"meta", "br", "img"})

    def __init__(self, source: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.names: list[str] = []
        self.attributes: list[tuple[str, str]] = []
        self.feed(source)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.names.append(tag)
        self.attributes += [(name, value or "") for name, value in attrs]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


@pytest.mark.parametrize("email_type", EMAIL_TYPES)
@pytest.mark.parametrize("context_of", [sample_context, minimum_context])
def test_a_built_in_template_renders_whole(email_type, context_of):
    email = render(built_in(email_type), context_of(email_type))

    assert Tags(email.html).open == []
    for part in (email.subject, email.html, email.text):
        assert part.strip()
        assert "{{" not in part and "{%" not in part and "None" not in part
    assert "\n\n\n" not in email.text
    assert context_of(email_type)["campaign_name"] in email.text


@pytest.mark.parametrize("email_type", EMAIL_TYPES)
def test_a_built_in_template_passes_its_own_validation(email_type):
    validate(built_in(email_type), email_type)


@pytest.mark.parametrize(("email_type", "link"), MAIN_LINK.items())
def test_the_main_link_is_in_both_bodies(email_type, link):
    context = {**sample_context(email_type), link: "https://example.org/x?a=1&b=2"}
    email = render(built_in(email_type), context)

    assert ("href", "https://example.org/x?a=1&b=2") in Tags(email.html).attributes
    assert "https://example.org/x?a=1&b=2" in email.text


def test_a_verification_shows_its_link_below_the_button_to_be_copied():
    email = render(built_in("verification"), sample_context("verification"))

    assert f">{sample_context('verification')['verification_url']}</a>" in email.html


def test_a_reward_tells_its_code_and_links_where_it_is_used():
    context = sample_context("reward_earned")
    context["reward_data"] = {"code": "ABC-123", "url": "https://example.org/use"}
    email = render(built_in("reward_earned"), context)

    for body in (email.html, email.text):
        assert "ABC-123" in body and "https://example.org/use" in body


@pytest.mark.parametrize("url", ["javascript:alert(1)", "www.example.org", 7, None, ""])
def test_a_reward_whose_address_is_no_link_still_goes_out_without_a_button(url):
    email = render(
        built_in("reward_earned"), {**sample_context("reward_earned"), "reward_data": {"url": url}}
    )

    assert "Use my reward" not in email.html


@pytest.mark.parametrize("email_type", EMAIL_TYPES)
def test_the_unsubscribe_line_is_there_only_with_a_url(email_type):
    context = {**sample_context(email_type), "unsubscribe_url": "https://example.org/u"}
    with_url = render(built_in(email_type), context)
    without = render(built_in(email_type), {**context, "unsubscribe_url": ""})

    assert "https://example.org/u" in with_url.html and "Unsubscribe: https://example.org/u" in with_url.text
    assert "nsubscribe" not in without.html + without.text


@pytest.mark.parametrize("email_type", EMAIL_TYPES)
def test_built_in_html_loads_nothing_and_follows_dark_mode(email_type):
    email = render(built_in(email_type), sample_context(email_type))

    assert not {"img", "script", "link", "iframe", "form"} & set(Tags(email.html).names)
    assert "url(" not in email.html and "@import" not in email.html
    assert '<meta name="color-scheme" content="light dark">' in email.html
    assert "prefers-color-scheme: dark" in email.html


def test_one_is_not_told_in_the_plural():
    one = render(built_in("milestone"), {**sample_context("milestone"), "milestone": 1})
    assert one.subject == "1 friend has joined Lumen Notebook with you"
    moved = render(
        built_in("position_update"), {**sample_context("position_update"), "previous_position": 43}
    )
    assert "1 place better than 43" in moved.text


def test_a_type_that_does_not_exist_is_named_with_those_that_do():
    with pytest.raises(TemplateError, match=r"'farewell'.*verification, welcome"):
        built_in("farewell")
    with pytest.raises(TemplateError, match="farewell"):
        validate(template(), "farewell")


# Escaping

hostile = st.one_of(
    st.sampled_from(
        [
            "<script>alert(1)</script>",
            '"><script>alert(1)</script>',
            "' onmouseover='alert(1)",
            "</title><script>",
            "--><script>",
            "{{ 7*7 }}<b>",
            "&lt;script&gt;",
            "\u202e<script>",
        ]
    ),
    st.text(max_size=60).map(lambda text: f"<script>{text}<img onerror={text}>\"'"),
    st.text(max_size=60),
)
TEXTS = [name for name, value in rendering.NOTHING.items() if value == "" and not name.endswith("_url")]


@given(
    email_type=st.sampled_from(EMAIL_TYPES),
    texts=st.fixed_dictionaries(dict.fromkeys(TEXTS, hostile)),
    code=hostile,
    tail=hostile,
)
def test_no_value_becomes_markup_in_a_built_in_template(email_type, texts, code, tail):
    harmless = sample_context(email_type)
    context = {**harmless, **texts, "reward_data": {"code": code}}
    context |= {
        name: f"{value}?{tail}" for name, value in harmless.items() if name.endswith("_url") and value
    }
    # A value that is missing leaves its sentence out; compare mails of the same shape.
    shape = {
        **harmless,
        **{name: "x" if texts[name] else "" for name in TEXTS},
        "reward_data": {"code": code and "x"},
    }
    email = render(built_in(email_type), context)

    assert "<script" not in email.html.lower()
    assert Tags(email.html).names == Tags(render(built_in(email_type), shape).html).names
    assert not any(name.startswith("on") for name, _ in Tags(email.html).attributes)


@given(value=hostile)
def test_every_value_is_escaped_in_a_tenants_html_and_untouched_in_its_text(value):
    values = dict.fromkeys(TEXTS, value) | {"data": {"x": value}, "reward_data": {"x": value}}
    printed = "|".join(["{{ " + name + " }}" for name in TEXTS] + ["{{ data.x }}", "{{ reward_data['x'] }}"])
    joined = printed.replace("}}|{{", "~")
    email = render(template(html=f"[{printed}] {joined}", text=f"[{printed}]"), values)

    kept = re.sub("[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff]", "", value)
    assert email.text == "[" + "|".join([kept] * (len(TEXTS) + 2)) + "]"
    assert html.unescape(email.html) == f"{email.text} {kept * (len(TEXTS) + 2)}"
    assert "<" not in email.html and '"' not in email.html and "'" not in email.html


def test_a_text_that_calls_itself_safe_is_refused():
    class Safe(str):
        __slots__ = ()

        def __html__(self) -> str:
            return self

    with pytest.raises(TypeError, match="user_first_name is of type Safe"):
        render(template(html="{{ user_first_name }}"), {"user_first_name": Safe("<script>")})
    assert (
        "not there"
        in render(template(html="{{ data.x|default('not there') }}"), {"data": {"x": Safe("<script>")}}).html
    )


# The subject


@given(name=st.text(max_size=400))
def test_the_subject_is_one_short_line_whatever_it_is_given(name):
    subject = render(template(subject="Hello {{ user_first_name }}"), {"user_first_name": name}).subject

    assert len(subject) <= 250
    assert subject.splitlines() == [subject]
    assert not re.search("[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\ud800-\udfff]", subject)


def test_a_header_cannot_be_added():
    for ending in ("\r\n", "\n", "\r", "\u2028", "\x85", "\x0b"):
        context = {"user_first_name": f"Ada{ending}Bcc: everyone@example.org"}
        subject = render(template(subject="Hello {{ user_first_name }}\n"), context).subject
        assert subject in ("Hello Ada Bcc: everyone@example.org", "Hello AdaBcc: everyone@example.org")


def test_a_subject_cannot_be_turned_around():
    context = {"user_first_name": "\u202eadA\u202d \u200fמ"}
    assert render(template(subject="Hello {{ user_first_name }}"), context).subject == "Hello adA \u200fמ"


def test_a_long_subject_is_shortened_and_an_empty_one_refused():
    subject = render(template(subject="{{ campaign_name }}"), {"campaign_name": "x" * 300}).subject
    assert subject == "x" * 249 + "…"
    assert (
        problem(template(subject=" \n")) == 'template "campaign c1 welcome v3", subject, line 1: it is empty'
    )


# Links


@pytest.mark.parametrize(
    "url",
    [
        "javascript:alert(1)",
        "JaVaScRiPt:alert(1)",
        " javascript:alert(1)",
        "java\nscript:alert(1)",
        "java\tscript:alert(1)",
        "\x01javascript:alert(1)",
        "&#106;avascript:alert(1)",
        "java&#10;script:alert(1)",
        "vbscript:x",
        "data:text/html,<script>",
        "file:///etc/passwd",
        "//example.org",
        "/relative",
        "",
    ],
)
@pytest.mark.parametrize(
    "source",
    [
        '<a href="{{ data.u }}">x</a>',
        "<a href='{{ data.u }}'>x</a>",
        "<a href={{ data.u }}>x</a>",
        '<a HREF = "{% if true %}{{ data.u }}{% endif %}">x</a>',
        '<img src="{{ data.u }}">',
        '<form action="{{ data.u }}">',
    ],
)
def test_a_link_leads_nowhere_but_to_the_web(source, url):
    assert "must begin with http" in problem(template(html=f"<p>\n{source}"), data={"u": url})


def test_a_refused_link_names_its_line_in_the_template():
    message = problem(template(html='<p>\n\n<a href="{{ data.u }}">x</a>'), data={"u": "javascript:x"})

    assert message.startswith(
        "template \"campaign c1 welcome v3\", html, line 3: href begins with 'javascript:'"
    )


@pytest.mark.parametrize(
    "url", ["https://example.org/?a=1&b=2", "http://x", "mailto:a@example.org", "tel:+1", "#top"]
)
def test_an_ordinary_link_goes_through(url):
    assert ("href", url) in Tags(
        render(template(html='<a href="{{ data.u }}">x</a>'), {"data": {"u": url}}).html
    ).attributes


def test_what_only_reads_like_a_link_is_text():
    made = template(html="<p class='x'>{{ data.a }}</p>{{ data.a }} {{ data.a }}<br>src=x")
    email = render(made, {"data": {"a": 'Add src=news or href="javascript:x'}})
    assert email.html.count("href=&#34;javascript:x") == 3


@pytest.mark.parametrize(
    "source",
    [
        '<a title=">" href="javascript:x">',
        "<a title='>' href=javascript:x>",
        """<a title='">"' href=javascript:x>""",
        "src=x <a href=javascript:x>",
        'src="https:// <a href=javascript:x> "',
        "src=x <b>src=x</b> <a title='>' href=javascript:x>",
        "<a href=https://x href=javascript:x>",
        "<!--[if mso]><a href=javascript:x><![endif]-->",
    ],
)
def test_a_link_cannot_pass_for_text(source):
    assert "href begins with 'javascript:'" in problem(template(html=source))


def test_links_are_counted():
    assert "more than 1000 links" in problem(template(html='<a href="http://x">' * 1_001))


# Broken templates


@pytest.mark.parametrize(
    ("source", "line", "cause"),
    [
        ("a\nb\n{{ user_frist_name }}", 3, "'user_frist_name' is undefined"),
        ("a\n{% if user_first_name %}b", 2, "endif"),
        ("a\n{{ user_first_name", 2, "unexpected"),
        ("{{ data.missing }}", 1, "'missing'"),
        ("\n{{ position }}", 2, "can be empty"),
        ("\n{{ position|number }}", 2, "can be empty"),
        ("\n{{ position + 1 }}", 2, "nothing + number is not allowed"),
        ("\n\n{{ 1 / 0 }}", 3, "division by zero"),
        ("\n{{ 1 < 'a' }}", 2, "not supported"),
        ("\n{{ data }}", 2, "mapping cannot be printed"),
        (
            "{% for a in range(3) %}\n{{ a|shout }}{% endfor %}",
            2,
            "no filter 'shout'; these are available: abs",
        ),
    ],
)
@pytest.mark.parametrize("part", ["subject", "html", "text"])
def test_a_broken_template_names_itself_the_part_the_line_and_the_cause(part, source, line, cause):
    message = problem(template(**{part: source}))

    assert message.startswith(f'template "campaign c1 welcome v3", {part}, line {line}: ')
    assert cause in message


def test_a_failure_inside_a_block_of_the_layout_names_the_tenants_line():
    source = '{% extends "base.html" %}\n{% block content %}\n\n{{ nobody }}{% endblock %}'
    assert "html, line 4: 'nobody' is undefined" in problem(template(html=source))


# Hostile templates

HOSTILE = {
    # Python's internals
    "class of a text": "{{ ''.__class__.__mro__ }}",
    "class by subscript": "{{ ''['__class__'] }}",
    "class of a mapping": "{{ data.__class__ }}",
    "class by filter": "{{ ''|attr('__class__') }}",
    "globals of self": "{{ self.__init__.__globals__ }}",
    "globals of cycler": "{{ cycler.__init__.__globals__.os }}",
    "globals of range": "{{ range.__globals__ }}",
    "inside of loop": "{% for i in [1] %}{{ loop._iterator }}{% endfor %}",
    "format of attributes": "{{ '{0.__class__}'.format(1) }}",
    "methods": "{{ data.items() }}",
    "context": "{{ context }}",
    "other templates": "{% include 'base.html' %}",
    "import": "{% import 'base.html' as b %}",
    "from import": "{% from 'base.html' import b %}",
    "files": "{% extends '../../settings.py' %}",
    "extends of a value": "{% extends campaign_name %}",
    # Escaping
    "safe": "{{ campaign_name|safe }}",
    "autoescape off": "{% autoescape false %}{{ campaign_name }}{% endautoescape %}",
    # Endless work
    "long range": "{% for i in range(100000000) %}{% endfor %}",
    "nested ranges": "{% for a in range(999) %}{% for b in range(999) %}{% for c in range(999) %}"
    + "{% endfor %}" * 3,
    "nested searches": "{% for a in range(999) %}{% for b in range(999) %}"
    "{% if 'a' ~ b in data.long %}{% endif %}" + "{% endfor %}" * 2,
    "recursive loop": "{% for i in [1] recursive %}{{ loop([1]) }}{% endfor %}",
    "recursive macro": "{% macro a() %}{{ a() }}{% endmacro %}{{ a() }}",
    "recursive block": "{% block a %}{{ self.a() }}{% endblock %}",
    "many loops deep": "{% for i in [1] %}" * 6 + "{% endfor %}" * 6,
    "lipsum": "{{ lipsum(n=1000000) }}",
    "own steps": "{% set _steps = 1 %}",
    "refund": "{{ 1|_turns(-1000000) }}",
    # Endless memory
    "text by number": '{{ "x" * 10000000000 }}',
    "list by number": "{{ [0] * 10000000000 }}",
    "power": "{{ 9 ** 9 ** 9 }}",
    "squares": "{% set n = 99999999999 %}" + "{% set n = n * n %}" * 40 + "{{ n }}",
    "rounding up": "{{ 1.5|round(1000000000, 'ceil') }}",
    "rounding": "{{ 1.5|round(1000000000) }}",
    "doubling": "{% set a = 'xxxxxxxx' %}" + "{% set a = a ~ a %}" * 40,
    "adding": "{% set a = 'xxxxxxxx' %}" + "{% set a = a + a %}" * 40,
    "replacing": "{% set a = 'x' %}" + "{% set a = a|replace('x', 'xxxxxxxx') %}" * 40,
    "replacing nothing": "{{ data.long|replace('', data.long) }}",
    "joining": "{{ data.long|join(data.long) }}",
    "upper of long": "{{ data.long|upper }}",
    "block doubling": "{% set a %}xx{% endset %}" + "{% set a %}{{ a }}{{ a }}{% endset %}" * 40,
    "lists of lists": "{% set a = ['x'] %}" + "{% set a = [a, a] %}" * 40 + "{{ a }}",
    "center": '{{ "x"|center(10000000000) }}',
    "ljust": '{{ "x".ljust(10000000000) }}',
    "indent": '{{ "x"|indent(10000000000, true) }}',
    "percent": '{{ "%10000000000d" % 1 }}',
    "format filter": '{{ "%10000000000d"|format(1) }}',
    "format width": '{{ "{:>10000000000}".format(1) }}',
    "printing a lot": "{% for i in range(999) %}{{ data.long }}{% endfor %}",
    "printing what escaping lengthens": "{% for i in range(5) %}{{ data.quotes }}{% endfor %}",
    "namespace": "{% set n = namespace(a=1) %}",
    # What exhausts a parser or a compiler
    "parentheses": "{{ " + "(" * 40_000 + "1" + ")" * 40_000 + " }}",
    "nots": "{{ " + "not " * 20_000 + "1 }}",
    "minuses": "{{ " + "-" * 40_000 + "1 }}",
    "sums": "{{ 1" + "+1" * 40_000 + " }}",
    "dots": "{{ a" + ".a" * 40_000 + " }}",
    "ifs": "{% if 1 %}" * 4_000 + "{% endif %}" * 4_000,
    "digits": "{{ " + "9" * 90_000 + " }}",
    "prints": "{{ 1 }}" * 14_000,
    "length": "x" * 100_001,
}


@pytest.mark.parametrize("source", HOSTILE.values(), ids=HOSTILE.keys())
def test_a_hostile_template_is_refused(source):
    values = {"campaign_name": "Acme", "data": {"long": "a" * 60_000, "quotes": "'" * 30_000}}

    assert 'template "campaign c1 welcome v3", html' in problem(template(html=source), **values)


@pytest.mark.parametrize(
    ("source", "cause"),
    [
        ("{% for i in [1] recursive %}{% endfor %}", "a loop must not be recursive"),
        ("{% for i in [1] %}{{ loop._iterator }}{% endfor %}", "there is no '_iterator'"),
        ("{{ range(1001) }}", "range gives 1001 numbers, at most 1000 are allowed"),
        ("{{ 1|_turns(-1000000) }}", "there is no filter '_turns'"),
        ("{{ 'abc'|replace('', 'x') }}", "replace needs a text to look for"),
        ("{{ 1" + " + 1" * 60 + " }}", "too deeply nested: at most 10000 parts, 50 deep"),
        ("{% for a in range(999) %}{% for b in range(999) %}{% endfor %}{% endfor %}", "does more work than"),
        ("{% for a in data.short %}{% endfor %}", "a loop cannot go over a value of type text"),
        ("{% extends 'base.txt' %}", 'a template can extend "base.html" only'),
        ("{% macro a() %}{% endmacro %}", "{% macro %} is not available"),
        ("{{ 9223372036854775807 + 2 }}", "a number is too large"),
        ("{% for i in range(9) %}{{ data.long }}{% endfor %}", "it becomes longer than 500000 characters"),
    ],
)
def test_each_bound_says_what_it_allows(source, cause):
    assert cause in problem(template(html=source), data={"long": "a" * 60_000, "short": "ab"})


@pytest.mark.parametrize(
    "source",
    [
        "{{ data.long|join(data.long) }}",
        "{{ data.long|replace('a', data.long) }}",
        "{{ " + " ~ ".join(["data.long"] * 3_000) + " }}",
        "{{ data.long|urlencode|urlencode|urlencode }}",
    ],
)
def test_a_bound_holds_before_the_memory_is_taken(source):
    made, context = template(html=source), {"data": {"long": "a" * 40_000 + "ü" * 5_000}}
    problem(made, **context)
    tracemalloc.start()
    try:
        assert "an expression builds more than 50000 characters" in problem(made, **context)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 5_000_000


def test_a_key_that_is_named_like_a_method_is_a_key():
    source = "{{ data.items }} {{ data.copy }} {{ data['update'] }} {{ data.pop|default('none') }}"
    data = {"items": 1, "copy": "two", "update": 3.5}
    assert render(template(text=source), {"data": data}).text == "1 two 3.5 none"


def test_what_an_honest_template_needs_works():
    source = (
        '{% extends "base.txt" %}\n{% block content %}\n'
        "{% for key, value in data|items %}\n"
        "{{ loop.index }}/{{ loop.length }} {{ key|title }}: {{ value }}\n{% endfor %}\n"
        "{% set left = position - 1 if position else 0 %}\n"
        '{{ left|number }} {{ "a" ~ 1 }} {{ campaign_name|truncate(4) }} '
        '{{ campaign_name|lower|replace("c", "k") }} {{ "b" in ("a", "b") }} '
        '{{ (2.25 * 3)|round(1) }} {{ data.gone|default("-") }} {{ "a b"|urlencode }}\n'
        "{% endblock %}{% block footer %}bye{% endblock %}"
    )
    email = render(
        template(text=source), {"campaign_name": "Acme Inc", "position": 2001, "data": {"one": 1, "two": "b"}}
    )

    assert email.text == "1/2 One: 1\n2/2 Two: b\n2,000 a1 Acm… akme ink True 6.8 - a%20b\n\n--\nbye"


def test_what_cannot_be_encoded_or_seen_does_not_leave():
    source = r"{{ '\ud800' }}a{{ '\x00' }}"
    email = render(template(html=source, text="{{ data.x }}"), {"data": {"x": "a\rb\x07\tc\nd"}})

    assert (email.html, email.text) == ("a", "ab\tc\nd")


def test_none_is_empty_whatever_the_value_is():
    made = template(text="[{{ user_first_name }}{% for key in data %}{{ key }}{% endfor %}]")
    assert render(made, {"user_first_name": None, "data": None}).text == "[]"


def test_nested_data_is_left_out_and_other_values_are_the_callers_mistake():
    assert render(template(text="{{ data.a|default('-') }}"), {"data": {"a": {"b": 1}}}).text == "-"
    with pytest.raises(TypeError, match="position is of type list"):
        render(template(), {"position": [1]})


def test_a_template_is_compiled_once_even_if_it_is_broken():
    good, broken = template(text="{{ user_email }} once"), template(text="{% if once")
    rendering._compile.cache_clear()
    for _ in range(3):
        assert render(good, {}) == RenderedEmail("Hello", "<p>Hello</p>", " once")
        problem(broken)

    assert rendering._compile.cache_info().misses == 4


# Validation


def test_validation_finds_a_wrong_name_where_no_mail_has_been_yet():
    wrong = template(html="{% if milestone == 77 %}\n{{ user_name }}{% endif %}")
    render(wrong, sample_context("welcome"))
    with pytest.raises(
        TemplateError, match=r"html, line 2: there is no value 'user_name'; templates are given campaign_name"
    ):
        validate(wrong, "welcome")


def test_validation_finds_what_is_missing_in_the_least_of_mails():
    wrong = template(text="You are number\n{{ position }}")
    render(wrong, sample_context("welcome"))
    with pytest.raises(TemplateError, match="text, line 2: it uses a value that can be empty"):
        validate(wrong, "welcome")
    validate(wrong, "position_update")


def test_validation_takes_a_field_of_data_to_be_there():
    validate(template(html='<a href="{{ data.link }}">{{ reward_data["pin"] }}</a>'), "reward_earned")
    with pytest.raises(TemplateError, match="text, line 1"):
        validate(template(text="{{ data.count * 2 }}"), "welcome")
    validate(template(text="{{ data.count * 2 }}"), "welcome", data={"count": 3})


@pytest.mark.parametrize("part", ["subject", "html", "text"])
def test_validation_reads_every_part(part):
    with pytest.raises(TemplateError, match=f"{part}, line 1"):
        validate(template(**{part: "{{ nobody }}"}), "welcome")


@pytest.mark.parametrize("source", ["{{ data.a|int }}", '<a href="{{ data.a }}">x</a>', "{{ data[data.a] }}"])
def test_a_persons_address_is_in_no_message(source):
    # Messages go to logs and dead letters.
    message = problem(template(html=source), data={"a": "ada@private.example"})
    assert "private" not in message


@pytest.mark.parametrize("key", ["data.a", "data.a|title", "user_first_name"])
def test_a_persons_name_is_in_no_message(key):
    message = problem(template(html="{{ data[" + key + "].x }}"), data={"a": "Ada"}, user_first_name="Ada")
    assert "html, line 1: there is no such key in a value of type mapping" in message and "Ada" not in message
    # A name that the template itself says is said again.
    assert "there is no 'first_name'" in problem(template(html="{{ data.first_name.x }}"), data={"a": "Ada"})

"""The small language that email templates are written in: a bounded part of Jinja2.

Templates come from tenants, and Jinja2's own sandbox only keeps them from Python's internals; it leaves
open how much they compute. So this one allows by a list: a template that uses anything else does not
compile.

Allowed: printing, ``if``, ``for`` (not recursive, five deep), ``set`` of an expression, comparisons,
arithmetic without ``**``, ``~``, the filters of `filters` and the tests below, ``range`` up to 1,000, and
``extends`` of the shared layout with its blocks. Not allowed: any other call (so no methods, no macros),
imports, block assignments, and switching autoescape off. A dot or a subscript reads a key of a mapping or a
part of a text and nothing else, never an attribute of a Python object.

Bounded for one rendering: steps (each turn of a loop costs the nodes in its body; operators and filters
cost by the length of what they build), the length of a text built by an expression, the size of integers;
and before that the source's length, its nodes and their depth. Not bounded is time as such: a step may
compare two texts as long as those of the context, which the event's own limit bounds.
"""

from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final

from jinja2 import BaseLoader, StrictUndefined, TemplateSyntaxError, nodes, pass_context
from jinja2.exceptions import SecurityError
from jinja2.runtime import Context, LoopContext, Undefined
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.visitor import NodeTransformer

from campaign_jobs.email.filters import EMPTY, FILTERS, as_text, is_number, printable, reserve, type_name

MAX_SOURCE_CHARACTERS: Final = 100_000
MAX_NODES: Final = 10_000
MAX_DEPTH: Final = 50
MAX_LOOPS_DEEP: Final = 5
MAX_RANGE: Final = 1_000
MAX_STEPS: Final = 50_000
MAX_INTEGER: Final = 2**63
CHARACTERS_PER_STEP: Final = 100

STEPS_NAME: Final = "_steps"
"""Where the context carries what is left of the steps. Templates cannot name it: see `_problem`."""

_NODES: Final = (
    nodes.Template,
    nodes.Output,
    nodes.TemplateData,
    nodes.Name,
    nodes.Const,
    nodes.Getattr,
    nodes.Getitem,
    nodes.Slice,
    nodes.Keyword,
    nodes.If,
    nodes.For,
    nodes.Assign,
    nodes.CondExpr,
    nodes.And,
    nodes.Or,
    nodes.Not,
    nodes.Compare,
    nodes.Operand,
    nodes.Test,
    nodes.Filter,
    nodes.Concat,
    nodes.Add,
    nodes.Sub,
    nodes.Mul,
    nodes.Div,
    nodes.FloorDiv,
    nodes.Mod,
    nodes.Neg,
    nodes.Pos,
    nodes.List,
    nodes.Tuple,
    nodes.Call,
    nodes.Extends,
    nodes.Block,
)
_SPELLINGS: Final = {
    "AssignBlock": "{% set %} with {% endset %}",
    "CallBlock": "{% call %}",
    "Dict": "a mapping written out",
    "FilterBlock": "{% filter %}",
    "FromImport": "{% from %}",
    "Import": "{% import %}",
    "Include": "{% include %}",
    "Macro": "{% macro %}",
    "Pow": "**",
    "Scope": "{% autoescape %}",
    "With": "{% with %}",
}
"""What a template's author wrote, for the names that Jinja2 gives it."""
_TESTS: Final = frozenset(
    (
        *("boolean", "defined", "divisibleby", "even", "float", "in", "integer", "mapping", "none", "number"),
        *("eq", "ge", "gt", "le", "lt", "ne", "odd", "sequence", "string", "undefined"),
    )
)
_LOOP_VALUES: Final = frozenset(
    ("depth", "first", "index", "index0", "last", "length", "nextitem", "previtem", "revindex", "revindex0")
)


class Steps:
    """What one rendering may still spend."""

    def __init__(self) -> None:
        self.left = MAX_STEPS

    def spend(self, steps: int) -> None:
        self.left -= steps
        if self.left < 0:
            raise SecurityError(f"the template does more work than allowed ({MAX_STEPS} steps)")


class TemplateEnvironment(ImmutableSandboxedEnvironment):
    """Compiles templates of the language above; `layout` is the one template that they may extend."""

    intercepted_binops = frozenset({"+", "-", "*", "/", "//", "%", "**"})

    def __init__(self, *, autoescape: bool, layout: str, loader: BaseLoader) -> None:
        super().__init__(
            autoescape=autoescape,
            loader=loader,
            undefined=StrictUndefined,
            finalize=printable,
            optimized=False,
            trim_blocks=True,
            lstrip_blocks=True,
        )
        self.layout = layout
        self.globals = {"range": _limited_range}
        self.filters = {name: _counted(function) for name, function in FILTERS.items()}
        self.filters |= {"default": _default, "_turns": _turns, "_concat": _concat}
        self.tests = {name: test for name, test in self.tests.items() if name in _TESTS}

    def _parse(self, source: str, name: str | None, filename: str | None) -> nodes.Template:
        if len(source) > MAX_SOURCE_CHARACTERS:
            raise TemplateSyntaxError(
                f"it is {len(source)} characters long, at most {MAX_SOURCE_CHARACTERS} are allowed",
                1,
            )
        tree = super()._parse(source, name, filename)
        _check(tree, self)
        _Metered().visit(tree)
        return tree

    def getattr(self, obj: Any, attribute: str) -> Any:
        if isinstance(obj, LoopContext) and attribute in _LOOP_VALUES:
            return getattr(obj, attribute)
        return self._value_of(obj, attribute, shown=repr(attribute))

    def getitem(self, obj: Any, argument: Any) -> Any:
        # The key may be computed, perhaps from a person's name, and is not repeated.
        return self._value_of(obj, argument, shown="such key")

    def _value_of(self, obj: Any, argument: Any, *, shown: str) -> Any:
        if isinstance(obj, Undefined):
            obj._fail_with_undefined_error()
        if isinstance(obj, (Mapping, str, tuple, list)):
            try:
                return obj[argument]
            except (LookupError, TypeError):
                pass
        return self.undefined(
            f"there is no {shown} in a value of type {type_name(obj)}",
            obj=obj,
            name=str(argument),
        )

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        both_text = isinstance(left, str) and isinstance(right, str)
        if not (operator == "+" and both_text) and not (is_number(left) and is_number(right)):
            raise SecurityError(f"{type_name(left)} {operator} {type_name(right)} is not allowed")
        return _built(context, super().call_binop(context, operator, left, right))


def _check(tree: nodes.Template, environment: TemplateEnvironment) -> None:
    """Raise TemplateSyntaxError for the first thing in the template that the language does not have.

    It walks with a stack of its own: a template must not be able to exhaust Python's.
    """
    waiting: list[tuple[nodes.Node, int, int, int]] = [(tree, 1, 0, 0)]
    seen = 0
    while waiting:
        node, line, depth, loops = waiting.pop()
        seen += 1
        loops += isinstance(node, nodes.For)
        line = node.lineno or line  # a node that Jinja2 puts in by itself has none
        problem = _problem(node, environment)
        if seen > MAX_NODES or depth > MAX_DEPTH or loops > MAX_LOOPS_DEEP:
            problem = (
                f"it is too large or too deeply nested: at most {MAX_NODES} parts, {MAX_DEPTH} deep, and"
                f" {MAX_LOOPS_DEEP} loops inside one another are allowed"
            )
        if problem:
            raise TemplateSyntaxError(problem, line)
        waiting.extend((child, line, depth + 1, loops) for child in node.iter_child_nodes())


def _problem(node: nodes.Node, environment: TemplateEnvironment) -> str | None:
    if not isinstance(node, _NODES):
        name = type(node).__name__
        return f"{_SPELLINGS.get(name, name)} is not available in email templates"
    match node:
        case nodes.Name(name=name) if name.startswith("_"):
            return f"{name!r}: names must not begin with an underscore"
        case nodes.Filter(name=name) if name not in environment.filters or name.startswith("_"):
            allowed = sorted(known for known in environment.filters if not known.startswith("_"))
            return f"there is no filter {name!r}; these are available: {', '.join(allowed)}"
        case nodes.Filter(node=None):
            return "a filter block is not available in email templates"
        case nodes.Test(name=name) if name not in environment.tests:
            return f"there is no test {name!r}; these are available: {', '.join(sorted(environment.tests))}"
        case nodes.Call(node=nodes.Name(name="range")) if not node.kwargs:
            pass
        case nodes.Call():
            return "only range(...) can be called in email templates, no macros and no methods"
        case nodes.For(recursive=True):
            return "a loop must not be recursive"
        case nodes.Extends(template=template):
            if not (isinstance(template, nodes.Const) and template.value == environment.layout):
                return f'a template can extend "{environment.layout}" only'
        # A list of variables could hold lists of lists, which are small in memory and endless in print.
        case nodes.List(items=items) | nodes.Tuple(items=items, ctx="load") if not all(
            isinstance(item, nodes.Const) for item in items
        ):
            return "a list may hold literal values only"
    if isinstance(node, (nodes.Call, nodes.Filter, nodes.Test)) and (node.dyn_args or node.dyn_kwargs):
        return "* and ** are not available for arguments"
    return None


class _Metered(NodeTransformer):
    """Lets loops and ``~``, which an environment cannot intercept, spend steps."""

    def visit_For(self, node: nodes.For) -> nodes.For:
        weight = 1 + sum(1 for _ in node.find_all(nodes.Node))
        self.generic_visit(node)
        node.iter = _filter(node.iter, "_turns", [nodes.Const(weight)])
        return node

    def visit_Concat(self, node: nodes.Concat) -> nodes.Filter:
        self.generic_visit(node)
        return _filter(node.nodes[0], "_concat", node.nodes[1:])


def _filter(node: Any, name: str, arguments: list[nodes.Expr]) -> nodes.Filter:
    made = nodes.Filter(node, name, arguments, [], None, None, lineno=node.lineno)
    return made.set_environment(node.environment)  # type: ignore[return-value]


@pass_context
def _turns(context: Context, values: Any, weight: int) -> Iterator[Any]:
    if isinstance(values, Undefined):
        values._fail_with_undefined_error()
    if not isinstance(values, (Mapping, range, tuple, list)):
        raise SecurityError(f"a loop cannot go over a value of type {type_name(values)}")
    for value in values:
        _steps(context).spend(weight)
        yield value


@pass_context
def _concat(context: Context, *values: Any) -> Any:
    texts = [as_text(value) for value in values]
    reserve(sum(map(len, texts)))
    return _built(context, "".join(texts))


def _default(value: Any, default: Any = "", boolean: bool = False) -> Any:
    """The one filter that takes an undefined value; ``default(x, true)`` replaces empty and zero as well."""
    missing = isinstance(value, Undefined) or value is None or (boolean and not value)
    return default if missing else value


def _counted(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function as a filter that takes plain values only and pays for what it builds."""

    @pass_context
    def counted(context: Context, *values: Any, **named: Any) -> Any:
        for value in (*values, *named.values()):
            if isinstance(value, Undefined):
                value._fail_with_undefined_error()
            if value is None:
                raise SecurityError(EMPTY)
            if isinstance(value, str):
                reserve(len(value))
        return _built(context, function(*values, **named))

    return counted


def _built(context: Context, value: Any) -> Any:
    length = len(value) if isinstance(value, (str, tuple, list)) else 0
    if isinstance(value, str):
        reserve(length)
    if isinstance(value, int) and abs(value) > MAX_INTEGER:
        raise SecurityError("a number is too large")
    _steps(context).spend(1 + length // CHARACTERS_PER_STEP)
    return value


def _steps(context: Context) -> Steps:
    steps = context.resolve(STEPS_NAME)
    assert isinstance(steps, Steps)
    return steps


def _limited_range(*bounds: int) -> range:
    made = range(*bounds)
    if len(made) > MAX_RANGE:
        raise SecurityError(f"range gives {len(made)} numbers, at most {MAX_RANGE} are allowed")
    return made

"""Chat templates: code from somebody else, run in Jinja's immutable sandbox, with bounds on time and memory besides."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from functools import lru_cache, wraps
from string import Formatter
from typing import Any, cast

import jinja2
import jinja2.compiler
import jinja2.ext
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace

from danlu.core.errors import UserError


STEPS = 1_000_000
"""Passes of loops in one rendering, a call counting as twenty, eight characters as one: a second, far beyond any conversation."""

LARGEST = 10_000_000
"""Characters, elements or bits that one product in a template may have."""

LENGTHS = ("center", "ljust", "rjust", "zfill", "expandtabs", "indent", "batch", "slice", "round", "to_bytes")
"""Filters and methods whose numbers are lengths."""

PERCENT = re.compile(r"%(?:\([^()]*\))?[-+ #0]*(\*|\d*)\.?(\*|\d*)[hlL]?(.?)", re.DOTALL)
"""A field of `%`, as Python reads it: width, precision, kind; the kind is `(` where a key has brackets of its own."""

FAULTS = (
    TypeError,
    ValueError,
    LookupError,
    AttributeError,
    ArithmeticError,
    RuntimeError,
    AssertionError,
    MemoryError,
)
"""What Python raises for what a template does; RecursionError is a RuntimeError."""


def rendered(
    template: str, messages: Sequence[Mapping[str, Any]], generation_prompt: bool, named: Mapping[str, str], name: str
) -> str:
    """The conversation as the template writes it. named: special tokens that it may refer to. name: the model's, for errors.

    Raises:
        UserError: the template is broken, refuses the conversation, or fails on it.
    """
    made = compiled(template)
    cast(_Sandbox, made.environment).left = STEPS
    try:
        return made.render(
            messages=[_reasoning(_plain(message)) for message in messages],
            tools=None,
            documents=None,
            add_generation_prompt=generation_prompt,
            **named,
        )
    except jinja2.TemplateError as error:
        said = f"refuses this conversation: {error.message}"
    except FAULTS as error:
        said = f"fails on this conversation: {str(error)[:500] or type(error).__name__}"
    # Raised out here, so that the error does not keep what the template had made.
    raise UserError(f"{name}: the chat template {said}", _refused(messages))


class _Generation(jinja2.ext.Extension):
    """`{% generation %} … {% endgeneration %}` marks an answer for trainers that need the mark; the text is unchanged."""

    tags = {"generation"}  # noqa: RUF012 (jinja2's own declaration)

    def parse(self, parser: jinja2.parser.Parser) -> jinja2.nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return jinja2.nodes.CallBlock(self.call_method("_inside"), [], [], body).set_lineno(line)

    def _inside(self, caller: jinja2.runtime.Macro) -> str:
        return str(caller())


class _Dict:
    """`dict` for templates, without the attributes of Python's."""

    def __call__(self, *args: Any, **kwargs: Any) -> dict[Any, Any]:
        return dict(*args, **kwargs)

    def fromkeys(self, *args: Any) -> dict[Any, Any]:
        return dict.fromkeys(*args)


class _Namespace(Namespace):
    """`namespace` for templates, without names that reach Python's internals."""

    def __init__(*args: Any, **kwargs: Any) -> None:  # so that a template may set `self`
        self, *rest = args
        values = dict(*rest, **kwargs)
        for name in values:
            _Namespace._check(name)
        Namespace.__init__(self, values)

    def __setitem__(self, name: str, value: Any) -> None:
        _Namespace._check(name)
        super().__setitem__(name, value)

    @staticmethod
    def _check(name: Any) -> None:
        if isinstance(name, str) and name.startswith("_"):
            raise jinja2.exceptions.SecurityError(f"a chat template may not set {name!r}")


def _refuse(message: str) -> None:
    raise jinja2.TemplateError(message)


def _tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | str | None = None,
    separators: Any = None,
    sort_keys: bool = False,
) -> str:
    """Jinja's own escapes for HTML, which a model never saw."""
    if indent is not None and (len(indent) if isinstance(indent, str) else indent) > 16:
        raise jinja2.TemplateError(f"tojson(indent={indent!r}): at most 16")
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _now(format: str) -> str:  # noqa: A002 (a template may name it)
    return datetime.now().strftime(format)  # noqa: DTZ005 (a template means the day on the person's clock)


def weigh(name: str, given: Sequence[Any]) -> None:
    """Refuse a call of this name that would make something far too large, before it is made; given: what it is called on, or None, and with."""
    value, *rest = (each.decode("latin-1") if isinstance(each, bytes) else each for each in given)
    size = max((abs(each) for each in rest if isinstance(each, int)), default=0) if name in LENGTHS else 0
    texts = [each for part in rest for each in (part.values() if isinstance(part, dict) else [part])]
    longest = max((len(each) for each in texts if isinstance(each, str)), default=1)
    first = len(value) if isinstance(value, str) else 0
    if name == "%":
        fields = PERCENT.findall(value) if first else []
        size = len(fields) * longest + sum(
            LARGEST + 1 if "*" in field or field[2] == "(" else sum(map(int, filter(None, field[:2])))
            for field in fields
        )
    elif name in ("format", "format_map") and first:
        widths = [field[2] or "" for field in Formatter().parse(value)]
        size = len(widths) * longest + sum(
            LARGEST + 1 if "{" in width else sum(map(int, re.findall(r"\d+", width))) for width in widths
        )
    elif name in ("indent", "expandtabs", "translate"):
        size = max(size, 1) * (first + 1) * max(longest, 1)
    elif name == "replace":
        old, new = map(str, rest[:2])
        size = str(value).count(old) * len(new)
    elif name == "join":
        lists = [part for part in given if isinstance(part, (list, tuple, range))]
        size = sum(len(each) for part in lists for each in part if isinstance(each, str))
        size += max(first, longest) * max(map(len, lists), default=0)
    if size > LARGEST:
        raise jinja2.TemplateError(f"a result of {name!r} too large, at most {LARGEST:,}")


def weighed(value: Any) -> Any:
    """A result that is not too large: of elements a tenth of the characters."""
    if isinstance(value, (str, bytes, list, tuple, dict)):
        most = LARGEST if isinstance(value, (str, bytes)) else LARGEST // 10
        if len(value) > most:
            raise jinja2.TemplateError(f"a value of {len(value):,} characters or elements, at most {most:,}")
    return value


def _careful(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    """A filter whose result cannot be too large."""

    @wraps(function)
    def filtered(*args: Any, **kwargs: Any) -> Any:
        given = args[1:] if hasattr(function, "jinja_pass_arg") else args
        weigh(name, (*given, *(kwargs[key] for key in sorted(kwargs, reverse=True))))  # old before new
        return weighed(function(*args, **kwargs))

    return filtered


class _Code(jinja2.compiler.CodeGenerator):
    """Jinja's, in which `~` goes through the environment."""

    def visit_Concat(self, node: jinja2.nodes.Concat, frame: jinja2.compiler.Frame) -> None:  # noqa: N802 (jinja's name)
        self.write("environment.joined((")
        for part in node.nodes:
            self.visit(part, frame)
            self.write(", ")
        self.write("))")


class _Sandbox(ImmutableSandboxedEnvironment):
    """Jinja's, which keeps a template from Python's insides, with bounds on time and memory besides."""

    intercepted_binops = frozenset({"*", "**", "+", "%"})  # and so never computed while compiling, either
    left = STEPS
    code_generator_class = _Code

    def spend(self, steps: int) -> None:
        self.left -= steps
        if self.left < 0:
            raise jinja2.TemplateError(f"more than {STEPS:,} passes of loops, a call counting as 20, 8 characters as 1")

    def counted(self, iterable: Any) -> Any:
        """What a loop goes over, paid for."""
        items = iterable if hasattr(iterable, "__len__") else list(iterable)
        self.spend(len(items))
        return items

    def call(self, context: Any, function: Any, /, *args: Any, **kwargs: Any) -> Any:
        self.spend(20)  # it takes about as long
        of = getattr(function, "__self__", getattr(getattr(function, "__wrapped__", None), "__self__", None))
        weigh(getattr(function, "__name__", ""), (of, *args, *kwargs.values()))
        return weighed(super().call(context, function, *args, **kwargs))

    def shown(self, value: Any) -> Any:
        """What is written out, paid for."""
        if hasattr(value, "__len__"):
            self.spend(len(value) >> 3)
        return value

    @staticmethod
    def joined(parts: tuple[Any, ...]) -> str:
        """`one ~ other`"""
        return cast(str, weighed("".join(map(str, parts))))

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        size = 0.0
        if operator == "**" and isinstance(left, int) and isinstance(right, int):
            size = left.bit_length() * max(right, 0)
        elif operator == "*" and isinstance(left, int) != isinstance(right, int):
            size = (
                len(right) * left if hasattr(right, "__len__") else len(left) * right if hasattr(left, "__len__") else 0
            )
        if size > LARGEST:
            raise jinja2.TemplateError(f"a result of {operator!r} too large: {size:g}, at most {LARGEST:,}")
        if operator == "%" and isinstance(left, (str, bytes)):
            weigh("%", (left, *(right if isinstance(right, tuple) else (right,))))
        return weighed(super().call_binop(context, operator, left, right))

    def _parse(self, source: str, name: str | None, filename: str | None) -> jinja2.nodes.Template:
        tree = super()._parse(source, name, filename)
        for loop in tree.find_all(jinja2.nodes.For):
            loop.iter = jinja2.nodes.Filter(loop.iter, "counted", [], [], None, None, lineno=loop.lineno)
        return tree


@lru_cache(maxsize=16)
def compiled(template: str) -> jinja2.Template:
    """The environment transformers renders templates in, so that they come out the same, byte for byte."""
    environment = _Sandbox(trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, jinja2.ext.loopcontrols])
    environment.filters = {
        name: _careful("%" if name == "format" else name, each) for name, each in environment.filters.items()
    }
    environment.filters |= {"tojson": _tojson, "counted": environment.counted}
    environment.finalize = environment.shown
    del environment.globals["lipsum"]  # as many words as it is asked for
    environment.globals |= {"raise_exception": _refuse, "strftime_now": _now, "dict": _Dict(), "namespace": _Namespace}
    try:
        return environment.from_string(template)
    except jinja2.TemplateSyntaxError as error:
        raise UserError(
            f"the chat template is broken at line {error.lineno}: {error.message}",
            "mend it, or name another: template=FILE.jinja",
        ) from None
    except (SyntaxError, *FAULTS) as error:  # blocks nested too deep for Python, numbers too long
        raise UserError(
            f"the chat template cannot be compiled: {type(error).__name__}: {str(error)[:500]}",
            "mend it, or name another: template=FILE.jinja",
        ) from None


def _plain(value: Any) -> Any:
    """Only plain data goes into the sandbox: an object's methods could do anything."""
    if value is None or type(value) in (str, int, float, bool):
        return value
    if isinstance(value, Mapping):
        return {_plain(key): _plain(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(inner) for inner in value]
    return str(value)


def _reasoning(message: dict[str, Any]) -> dict[str, Any]:
    """What a model thinks before it answers has three names in use; templates read one or another of them."""
    names = ("reasoning_content", "thinking", "reasoning")
    thought = next((message[name] for name in names if message.get(name) is not None), None)
    return message if thought is None else {"thinking": thought, **message, "reasoning_content": thought}


def _refused(messages: Sequence[Mapping[str, Any]]) -> str:
    roles = ", ".join(str(message.get("role")) for message in messages[:8])
    return f"the roles are: {roles}{', …' if len(messages) > 8 else ''}; change the conversation, or name another template=FILE.jinja"

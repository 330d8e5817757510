"""Parses the tests of a task and decides how each is evaluated, once for all programs of the task."""

import ast
import builtins
import dis
import functools
import math
import types
from collections import Counter, OrderedDict
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from . import library
from .remote import plain

# Modules that tests may import, or use without an import. Tests see these modules, even if the program uses the names.
MODULES = {"bisect", "cmath", "collections", "copy", "datetime", "decimal", "fractions", "functools", "heapq", "json"}
MODULES |= {"itertools", "math", "numbers", "operator", "random", "re", "statistics", "string", "time", "typing"}


class Call(NamedTuple):
    """A test of the form `assert call == literal`."""

    call: types.CodeType
    value: Any


class Block(NamedTuple):
    """Any other test: its code, and the names of the test functions and test classes that it defines."""

    code: types.CodeType
    tests: list[str]


class Prepared(NamedTuple):
    """How the tests of a task are evaluated."""

    ways: list[Call | Block | Exception]  # one for each test; an Exception if the test cannot be parsed
    names: list[str]  # all names that the code reads
    called: set[str]  # the names that it calls directly


@functools.lru_cache(maxsize=2048)
def prepare(tests: tuple[str, ...], approximately: bool) -> Prepared:
    """Parse the tests of a task; the result is cached for all of its programs."""
    ways: list[Call | Block | Exception] = []
    names, called, does = set(), set(), False
    for test in tests:
        try:
            tree = ast.parse(test)
            if not tree.body:
                raise ValueError("the test is empty")  # every program would pass it
            way: Call | Block | None = _call_and_value(tree.body)
            if way is None:
                names |= {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
                calls = [node.func for node in ast.walk(tree) if isinstance(node, ast.Call)]
                called |= {function.id for function in calls if isinstance(function, ast.Name)}
                found = [name for name in _defined_tests(tree) if name not in called]
                does = does or bool(found) or not all(isinstance(node, _DEFINING) for node in tree.body)
                tree = _with_approximate_equality(tree) if approximately else tree
                way = Block(compile(ast.fix_missing_locations(_Identity().visit(tree)), "<test>", "exec"), found)
            else:
                does = True
            ways.append(way)
        except Exception as error:
            ways.append(error)
    if not does and not any(isinstance(way, Exception) for way in ways):
        ways = [ValueError("the test does nothing but define")] * len(tests)  # every program would pass it
    return Prepared(ways, sorted(names), called)


_DEFINING = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef, ast.Import, ast.ImportFrom)


def _defined_tests(tree: ast.Module) -> Iterator[str]:
    """Yield the names of the test functions and test classes, as pytest collects them."""
    for node in tree.body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.name.startswith("test_"):
            yield node.name
        elif isinstance(node, ast.ClassDef):
            bases = {ast.unparse(base).rpartition(".")[2] for base in node.bases}
            if node.name.startswith("Test") or any(base.endswith("TestCase") for base in bases):
                yield node.name


class _Identity(ast.NodeTransformer):
    """Replaces `a is b` and `a.__class__`, since the stand-in for an object differs in identity and type."""

    def visit_Attribute(self, node: ast.Attribute) -> ast.AST:
        self.generic_visit(node)
        if node.attr != "__class__" or not isinstance(node.ctx, ast.Load):
            return node
        return ast.copy_location(ast.Call(ast.Name("__class_of__", ast.Load()), [node.value], []), node)

    def visit_Compare(self, node: ast.Compare) -> ast.AST:
        self.generic_visit(node)
        if len(node.ops) != 1 or not isinstance(node.ops[0], ast.Is | ast.IsNot):
            return node
        right = node.comparators[0]
        if isinstance(right, ast.Constant) and (right.value is None or isinstance(right.value, bool)):
            return node
        call: ast.expr = ast.Call(ast.Name("__same__", ast.Load()), [node.left, right], [])
        if isinstance(node.ops[0], ast.IsNot):
            call = ast.UnaryOp(ast.Not(), call)
        return ast.copy_location(call, node)


def _call_and_value(body: Sequence[ast.stmt]) -> Call | None:
    """Return the parts of `assert f(literals) == literal`, or None for any other test."""
    if len(body) != 1 or not isinstance(body[0], ast.Assert) or not isinstance(body[0].test, ast.Compare):
        return None
    compare = body[0].test
    left = compare.left
    if len(compare.ops) != 1 or not isinstance(compare.ops[0], ast.Eq):
        return None
    if not isinstance(left, ast.Call) or not isinstance(left.func, ast.Name) or is_ours(left.func.id):
        return None
    value = compile(ast.Expression(compare.comparators[0]), "<test>", "eval")
    nested = any(isinstance(constant, types.CodeType) for constant in value.co_consts)
    call = compile(ast.Expression(left), "<test>", "eval")
    if nested or value.co_names or call.co_names != (left.func.id,):
        return None
    return Call(call, eval(value, {}))


def globals_of(code: types.CodeType) -> set[str]:
    """Return the global names that code, and code that is nested in it, looks up."""
    inner = [globals_of(constant) for constant in code.co_consts if isinstance(constant, types.CodeType)]
    own = {one.argval for one in dis.get_instructions(code) if one.opname in ("LOAD_GLOBAL", "LOAD_NAME")}
    return own.union(*inner)


def is_ours(name: str) -> bool:
    """Return whether a name is that of a builtin or of a module that tests may use."""
    return name in MODULES or hasattr(builtins, name)


def _with_approximate_equality(tree: ast.Module) -> ast.Module:
    """Replace the `==` of each `assert a == b` by `almost_equal`."""
    for node in ast.walk(tree):
        test = node.test if isinstance(node, ast.Assert) else None
        if isinstance(test, ast.Compare) and len(test.ops) == 1 and isinstance(test.ops[0], ast.Eq):
            call = ast.Call(ast.Name("__almost_equal__", ast.Load()), [test.left, test.comparators[0]], [])
            node.test = ast.copy_location(call, test)  # type: ignore[attr-defined]
    return ast.fix_missing_locations(tree)


def almost_equal(a: Any, b: Any) -> bool:
    """Compare as the paper's tests do: numbers to a relative 1e-6 or absolute 1e-12, also inside containers."""
    a, b = library.number(plain(a)), library.number(plain(b))
    if isinstance(a, bool) or isinstance(b, bool):
        return bool(a == b)
    if isinstance(a, (int, float)) and isinstance(b, (int, float)):
        try:
            return a == b or math.isclose(a, b, rel_tol=1e-6, abs_tol=1e-12)
        except OverflowError:  # an integer too large for a float
            return False
    if any(isinstance(a, kind) and isinstance(b, kind) for kind in (list, tuple)):
        return len(a) == len(b) and all(map(almost_equal, a, b))
    if isinstance(a, OrderedDict) and isinstance(b, OrderedDict) and list(a) != list(b):
        return False
    if isinstance(a, Counter) and isinstance(b, Counter):
        return all(almost_equal(a[k], b[k]) for k in {**a, **b})
    if isinstance(a, dict) and isinstance(b, dict):
        return a.keys() == b.keys() and all(almost_equal(a[k], b[k]) for k in b)
    return bool(a == b)

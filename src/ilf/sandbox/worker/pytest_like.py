"""The parts of pytest that tests use, implemented without pytest, and a runner for the tests that are defined."""

import asyncio
import contextlib
import inspect
import io
import itertools
import math
import re
import types
import unittest
from collections.abc import Iterator
from typing import Any, NamedTuple

from . import library
from .remote import Unsupported, plain

# ---- what `import pytest` gives ----------------------------------------------------------------------------------


class _Raises:
    """The context manager of `raises`."""

    value: BaseException
    type: Any

    def __init__(self, expected: Any, match: str | None) -> None:
        self._expected, self._match = expected, match

    def __enter__(self) -> "_Raises":
        return self

    def __exit__(self, kind: Any, error: Any, trace: Any) -> bool:
        if kind is None:
            raise AssertionError(f"DID NOT RAISE {self._expected}")
        if not issubclass(kind, self._expected):
            return False
        self.type, self.value = kind, error
        if self._match is not None and not re.search(self._match, str(error)):
            raise AssertionError(f"{self._match!r} does not match {str(error)!r}")
        return True

    def match(self, pattern: str) -> bool:
        if not re.search(pattern, str(self.value)):
            raise AssertionError(f"{pattern!r} does not match {str(self.value)!r}")
        return True


def raises(expected: Any, *args: Any, match: str | None = None, **keywords: Any) -> Any:
    """Expect an exception from a `with` block, or from a function that is called with the arguments."""
    found = _Raises(expected, match)
    if not args:
        return found
    with found:
        args[0](*args[1:], **keywords)
    return found


class approx:
    """A number, or numbers in a list, tuple or dictionary, that is equal to any number close to it."""

    def __init__(self, expected: Any, rel: float | None = None, abs: float | None = None, nan_ok: bool = False) -> None:
        self._expected, self._nan = expected, nan_ok
        self._absolute = 1e-12 if abs is None else abs
        self._relative = (0.0 if abs is not None else 1e-6) if rel is None else rel

    def __eq__(self, actual: Any) -> bool:
        return self._near(actual, self._expected)

    def _near(self, actual: Any, expected: Any) -> bool:
        actual, expected = plain(actual), plain(expected)
        if library.packages and "numpy" in {type(actual).__module__, type(expected).__module__}:
            several = getattr(actual, "shape", ()) != ()
            actual, expected = (v.tolist() if type(v).__module__ == "numpy" else v for v in (actual, expected))
            if several and isinstance(expected, int | float | complex):  # each number of the array must be close
                return all(self._near(one, expected) for one in actual)
        if isinstance(expected, dict):
            return (
                isinstance(actual, dict)
                and actual.keys() == expected.keys()
                and all(self._near(actual[key], expected[key]) for key in expected)
            )
        if isinstance(expected, list | tuple):
            return (
                isinstance(actual, list | tuple)
                and len(actual) == len(expected)
                and all(map(self._near, actual, expected))
            )
        try:
            if math.isnan(expected) or math.isnan(actual):
                return self._nan and math.isnan(expected) and math.isnan(actual)
            return bool(
                actual == expected or abs(actual - expected) <= max(self._relative * abs(expected), self._absolute)
            )
        except TypeError:
            return bool(actual == expected)

    __hash__ = None  # type: ignore[assignment]
    __array_ufunc__ = None  # makes numpy call `__eq__` once per array rather than once per number

    def __repr__(self) -> str:
        return f"approx({self._expected!r})"


class _Mark:
    """Replacement for pytest.mark: supports `parametrize`, refuses skip, skipif and xfail, and ignores other marks."""

    def __getattr__(self, name: str) -> Any:
        def mark(*args: Any, **keywords: Any) -> Any:
            if name in ("skip", "skipif", "xfail"):
                raise Unsupported(f"uses pytest.mark.{name}")
            if len(args) == 1 and not keywords and isinstance(args[0], types.FunctionType | type):
                return args[0]
            if name == "parametrize":
                return lambda function: _parametrized(function, *args, **keywords)
            return lambda function: function

        return mark


mark = _Mark()


def _parametrized(function: Any, names: Any, values: Any, ids: Any = None) -> Any:
    names = [name.strip() for name in names.split(",")] if isinstance(names, str) else list(names)
    rows = [row.values if isinstance(row, _Param) else row for row in values]
    rows = [dict(zip(names, row if len(names) > 1 or isinstance(row, _Row) else (row,), strict=True)) for row in rows]
    function.__dict__.setdefault("_parameters", []).append(rows)
    return function


class _Row(tuple[Any, ...]):
    pass


class _Param(NamedTuple):
    values: _Row


def param(*values: Any, id: str | None = None, marks: Any = ()) -> _Param:
    """Return a row of values for `mark.parametrize`."""
    return _Param(_Row(values))


def fixture(function: Any = None, **keywords: Any) -> Any:
    """Mark a function as a fixture, whose value tests take as an argument."""
    if keywords.get("params") is not None:
        raise Unsupported("uses a pytest.fixture with parameters")

    def marked(function: Any) -> Any:
        function._fixture = keywords
        return function

    return marked if function is None else marked(function)


def fail(reason: str = "", pytrace: bool = True) -> None:
    """Fail a test."""
    raise AssertionError(reason)


def skip(reason: str = "", **keywords: Any) -> None:
    """Refuse to skip: a skipped test says nothing about the program."""
    raise Unsupported("skips")


def importorskip(name: str, **keywords: Any) -> None:
    """Refuse the import."""
    raise Unsupported(f"imports {name}")


# ---- run the tests that are defined --------------------------------------------------------------------------------


class _Captured(NamedTuple):
    out: str
    err: str


class _Capsys:
    """The value of the fixture `capsys`."""

    def __init__(self) -> None:
        self._streams = io.StringIO(), io.StringIO()

    def readouterr(self) -> _Captured:
        found = _Captured(*(stream.getvalue() for stream in self._streams))
        for stream in self._streams:
            stream.seek(0)
            stream.truncate()
        return found


@contextlib.contextmanager
def _capsys() -> Iterator[_Capsys]:
    found = _Capsys()
    with contextlib.redirect_stdout(found._streams[0]), contextlib.redirect_stderr(found._streams[1]):
        yield found


def run(scope: dict[str, Any], names: list[str]) -> None:
    """Run the test functions and test classes with these names.

    Raises:
        Exception: The exception of the first test that fails.
        Unsupported: A test needs something that is not supported.
    """
    for name in names:
        found = scope.get(name)
        if isinstance(found, type) and issubclass(found, unittest.TestCase):
            _run_case(found)
        elif isinstance(found, type):
            methods = [key for key, value in vars(found).items() if key.startswith("test") and callable(value)]
            for method in methods:
                instance = found()
                with _around(instance, "setup_method", "teardown_method", method):
                    _run_function(getattr(instance, method), scope)
        elif isinstance(found, types.FunctionType):
            with _around(None, "setup_function", "teardown_function", found, scope):
                _run_function(found, scope)


@contextlib.contextmanager
def _around(instance: Any, before: str, after: str, what: Any, scope: dict[str, Any] | None = None) -> Iterator[None]:
    for name in (before, after):
        function = getattr(instance, name, None) if scope is None else scope.get(name)
        if function is not None:
            function(what) if len(inspect.signature(function).parameters) else function()
        if name == before:
            yield


def _run_function(function: Any, scope: dict[str, Any]) -> None:
    tables = getattr(function, "_parameters", [[{}]])
    for rows in itertools.product(*tables):
        given = {key: value for row in rows for key, value in row.items()}
        with contextlib.ExitStack() as stack:
            for name, parameter in inspect.signature(function).parameters.items():
                if name not in given and parameter.default is parameter.empty:
                    given[name] = _fixture(name, scope, stack)
            result = function(**given)
            if inspect.iscoroutine(result):
                asyncio.run(result)


def _fixture(name: str, scope: dict[str, Any], stack: contextlib.ExitStack) -> Any:
    if name == "capsys":
        return stack.enter_context(_capsys())
    function = scope.get(name)
    if getattr(function, "_fixture", None) is None:
        raise Unsupported(f"uses a pytest fixture {name}")
    assert function is not None
    given = {one: _fixture(one, scope, stack) for one in inspect.signature(function).parameters}
    result = function(**given)
    if not inspect.isgenerator(result):
        return result
    value = next(result)
    stack.callback(lambda: next(result, None))
    return value


class _Result(unittest.TestResult):
    """A test result that raises the first failure."""

    def addError(self, test: Any, err: Any) -> None:
        raise err[1]

    def addFailure(self, test: Any, err: Any) -> None:
        raise err[1]

    def addSubTest(self, test: Any, subtest: Any, err: Any) -> None:
        if err is not None:
            raise err[1]

    def addSkip(self, test: Any, reason: str) -> None:
        raise Unsupported("skips")

    def addExpectedFailure(self, test: Any, err: Any) -> None:
        raise Unsupported("expects a failure")

    addUnexpectedSuccess = addExpectedFailure  # type: ignore[assignment]


def _run_case(case: type[unittest.TestCase]) -> None:
    unittest.defaultTestLoader.loadTestsFromTestCase(case).run(_Result())

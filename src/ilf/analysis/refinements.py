"""Properties of refinements besides their verdict: the edit distance to x0, and whether a refinement cheats."""

from __future__ import annotations

import ast
from collections.abc import Iterator, Sequence
from functools import lru_cache


def edit_distance(a: str, b: str) -> float:
    """Return the Levenshtein distance of two texts as a share of the longer one, from 0 to 1.

    The paper only uses annotations below 0.5. Here the distance is reported and has no effect.

    >>> edit_distance("kitten", "sitting")
    0.42857142857142855
    """
    longest = max(len(a), len(b), 1)
    # A common start or end does not change the distance, and a refinement shares its whole prompt with x0.
    a, b = _without_common_start(a, b)
    a, b = _without_common_start(a[::-1], b[::-1])
    previous = list(range(len(b) + 1))
    for i, left in enumerate(a, 1):
        current = [i]
        for j, right in enumerate(b, 1):
            current.append(min(previous[j] + 1, current[-1] + 1, previous[j - 1] + (left != right)))
        previous = current
    return previous[-1] / longest


def _without_common_start(a: str, b: str) -> tuple[str, str]:
    start = next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))
    return a[start:], b[start:]


def returns_expected_literal(program: str, tests: Sequence[str]) -> bool:
    """Return whether a program checks its input and returns the literal that a unit test expects.

    Args:
        program: A program that passes its tests, and therefore parses.
        tests: `assert f(...) == literal` statements; other statements are ignored.
    """
    expected = [value for test in tests for value in _expected(test)]
    for node in ast.walk(ast.parse(program)):
        if isinstance(node, ast.If) and any(isinstance(n, ast.Compare) for n in ast.walk(node.test)):
            returned = [n.value for line in node.body for n in ast.walk(line) if isinstance(n, ast.Return) and n.value]
            # Many honest functions return True, None, 0, "" and the like.
            if any(value in expected and not isinstance(value, bool) and value for value in _literals(returned)):
                return True
    return False


@lru_cache(maxsize=4096)  # many programs have the same tests
def _expected(test: str) -> tuple[object, ...]:
    return tuple(_literals(_right_sides(ast.parse(test))))


def _right_sides(tree: ast.AST) -> list[ast.expr]:
    tests = [n.test for n in ast.walk(tree) if isinstance(n, ast.Assert)]
    return [t.comparators[0] for t in tests if isinstance(t, ast.Compare) and isinstance(t.ops[0], ast.Eq)]


def _literals(nodes: Sequence[ast.expr]) -> Iterator[object]:
    for node in nodes:
        try:
            yield ast.literal_eval(node)
        except ValueError:
            continue

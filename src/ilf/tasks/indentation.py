"""Re-indents programs with four spaces per level, using Python's own tokenizer to find the levels."""

from __future__ import annotations

import ast
import io
import tokenize

from ilf.tasks.prompts import lines_of, normalise_newlines

_LEVEL = 4
_BETWEEN = (tokenize.INDENT, tokenize.DEDENT, tokenize.NL, tokenize.ENDMARKER)


def reindented(code: str) -> str:
    r"""Return an equivalent program with four spaces per level.

    A line that continues a statement moves with the first line of the statement, and a comment on its own line moves
    with its block. Lines that begin inside a string, and all newlines, stay unchanged.

    >>> reindented("def f(x):\n\tif x:\n\t  return x\n")
    'def f(x):\n    if x:\n        return x\n'
    """
    lines = lines_of(code, keepends=True)
    widths = {row: _width(line) for row, line in enumerate(lines, 1)}
    new = dict[int, int]()  # new widths by row
    blocks = [0]  # the indentation widths of the open blocks
    comments: list[int] = []  # rows of the comments above the next statement
    starts = True  # whether the next token starts a statement
    for token in tokenize.generate_tokens(io.StringIO(normalise_newlines(code)).readline):
        first, last = token.start[0], token.end[0]
        if token.type == tokenize.NEWLINE:
            starts = True
        elif starts and token.type == tokenize.COMMENT:
            comments.append(first)
        elif token.type not in _BETWEEN:
            if starts:
                starts, before, width = False, blocks, widths[first]
                blocks = [start for start in blocks if start < width] + [width]
                shift = _LEVEL * (len(blocks) - 1) - width
                for (
                    row
                ) in comments:  # a comment belongs to the block that ends here, the one that begins, or an outer one
                    depths = (sum(start <= widths[row] for start in some) for some in (before, blocks))
                    new[row] = _LEVEL * (max(depths) - 1)
                comments = []
            new |= {row: max(0, widths[row] + shift) for row in range(first, last + 1)}
    inside = _inside_strings(code)
    for row, width in new.items():
        if row not in inside:
            lines[row - 1] = " " * width + lines[row - 1].lstrip(" \t\f")
    return "".join(lines)


def _width(line: str) -> int:
    """Return the indentation of a line. As in Python, a tab advances to a multiple of 8, and a form feed resets it."""
    indent = line[: len(line) - len(line.lstrip(" \t\f"))]
    return len(indent.rpartition("\f")[2].expandtabs(8))


def _inside_strings(code: str) -> set[int]:
    """Return the rows that begin inside a string, or between implicitly concatenated strings."""
    texts = [node for node in ast.walk(ast.parse(code)) if isinstance(node, ast.Constant | ast.JoinedStr)]
    return {row for node in texts for row in range(node.lineno + 1, (node.end_lineno or node.lineno) + 1)}

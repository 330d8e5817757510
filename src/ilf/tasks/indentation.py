"""Programs with four spaces a level, whatever their indentation was: Python's own tokenizer says what a level is."""

from __future__ import annotations

import ast
import io
import tokenize

from ilf.tasks.prompts import lines_of, normalise_newlines

_LEVEL = 4
_BETWEEN = (tokenize.INDENT, tokenize.DEDENT, tokenize.NL, tokenize.ENDMARKER)


def reindented(code: str) -> str:
    r"""Return a program with four spaces a level, which does what it did.

    A line that continues a statement moves with the statement's first line, and a comment on a line of its own with
    its block. A line that begins inside a string stays as it is, and so does every newline.

    >>> reindented("def f(x):\n\tif x:\n\t  return x\n")
    'def f(x):\n    if x:\n        return x\n'
    """
    lines = lines_of(code, keepends=True)
    widths = {row: _width(line) for row, line in enumerate(lines, 1)}
    new = dict[int, int]()  # by row
    blocks = [0]  # where the open blocks start
    comments: list[int] = []  # rows of those above the next statement
    starts = True  # whether the next token is a statement's first
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
                for row in comments:  # of the block that ends here, of the one that begins, or of one around them
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
    """Return how far a line is indented: for Python, a tab goes to a multiple of eight and a form feed back to 0."""
    indent = line[: len(line) - len(line.lstrip(" \t\f"))]
    return len(indent.rpartition("\f")[2].expandtabs(8))


def _inside_strings(code: str) -> set[int]:
    """Return the rows that begin inside a string, or between strings that are joined."""
    texts = [node for node in ast.walk(ast.parse(code)) if isinstance(node, ast.Constant | ast.JoinedStr)]
    return {row for node in texts for row in range(node.lineno + 1, (node.end_lineno or node.lineno) + 1)}

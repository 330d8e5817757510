"""Builds task prompts, and extracts programs from text. Prompts with feedback are in feedback_prompts.py.

The task prompt is the paper's (Chen et al. 2023, section 3 and the released data). Python's own parser and tokenizer
determine where a function starts and ends, so that the indentation style of a text (tabs, one space, two spaces) does
not change the result.
"""

from __future__ import annotations

import ast
import builtins
import contextlib
import io
import re
import tokenize
import warnings
from collections.abc import Iterator

# Python would warn about invalid escapes in each of the thousands of programs that are parsed here.
warnings.filterwarnings("ignore", category=SyntaxWarning, module="<unknown>")

# A line that starts a statement in the first column, to which a form feed returns in Python's tokenizer.
_TOP_LEVEL = re.compile(r"(?<![^\r\n])(?:[ \t\f]*\f)?[^\s#]")
_PAPER_CUTS = re.compile(r'^[A-Za-z#"]', re.MULTILINE)
# A line in the first column that no program contains, but that a model may write after one: it begins another prompt.
_ANOTHER = re.compile(r'^(?:"""|OLD CODE:|FEEDBACK:|REFINEMENT:|>>> .*|```.*)[ \t]*$', re.MULTILINE)
_TRAILING_COMMENTS = re.compile(r"(?:[\r\n]#[^\r\n]*(?=[\r\n]|\Z)|\s)+\Z")
_INDENT = re.compile(r"[ \t\f]*")
_CONTINUED = re.compile(r"(?<!\\)(?:\\\\)*\\[\r\n]*\Z")  # a backslash that ends a line, but no escaped one
_BUILT_IN = frozenset(dir(builtins))
_LAYOUT = (tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER)


def normalise_newlines(text: str) -> str:
    r"""Return `text` with every newline replaced by \n.

    >>> normalise_newlines("a\r\nb\rc")
    'a\nb\nc'
    """
    return text.replace("\r\n", "\n").replace("\r", "\n")


def lines_of(code: str, keepends: bool = False) -> list[str]:
    r"""Return the lines of `code`, optionally with their ends, as Python counts them: they end only at \n, \r and \r\n.

    `str.splitlines` also splits at a form feed and seven other characters, which strings and comments may contain.

    >>> lines_of("a\fb\u2028c\r\nd\re")
    ['a\x0cb\u2028c', 'd', 'e']
    """
    lines = io.StringIO(code, newline="").readlines()
    return lines if keepends else [line.rstrip("\r\n") for line in lines]


def _tokens(code: str) -> Iterator[tokenize.TokenInfo]:
    """Return the tokens of `code`, after normalizing its newlines, which the tokenizer requires."""
    return tokenize.generate_tokens(io.StringIO(normalise_newlines(code)).readline)


def _start(code: str, line: int) -> int:
    """Return the offset at which a line starts. Lines are counted from 1."""
    return sum(map(len, lines_of(code, keepends=True)[: line - 1]))


def entry_point(code: str, tests: tuple[str, ...]) -> str:
    """Return the name of the top-level function of `code` that every test calls.

    Raises:
        ValueError: No function, or more than one, is called by all tests.
    """
    defined = {node.name for node in ast.parse(code).body if isinstance(node, ast.FunctionDef)}
    common = defined
    for test in tests:
        calls = [n.func for n in ast.walk(ast.parse(test.strip())) if isinstance(n, ast.Call)]
        common = common & {f.id for f in calls if isinstance(f, ast.Name)}
    if len(common) != 1:
        raise ValueError(
            f"the tests call {sorted(common) or 'none'} of the program's functions {sorted(defined)}; "
            "exactly one function must be called by every test"
        )
    return next(iter(common))


def _definition(code: str, name: str) -> ast.FunctionDef:
    """Return the last top-level definition of `name`, which is the one that is in effect."""
    found = [n for n in ast.parse(code).body if isinstance(n, ast.FunctionDef) and n.name == name]
    if not found:
        raise ValueError(f"the program defines no function {name!r} at its top level")
    return found[-1]


def _header_end(code: str, name: str) -> int:
    """Return the offset just after the colon of the `def` line of `name`."""
    first = _definition(code, name).lineno
    depth = 0
    for token in _tokens(code):
        if token.start[0] < first or token.type != tokenize.OP:
            continue
        depth += (token.string in "([{") - (token.string in ")]}")
        if token.string == ":" and depth == 0:
            return _start(code, token.end[0]) + token.end[1]
    raise ValueError(f"the definition of {name!r} has no colon")  # unreachable for code that parses


def task_prompt(text: str, code: str, tests: tuple[str, ...], style: str = "paper") -> str:
    """Return the prompt of a task: its description and first test in a docstring, then the `def` line.

    If the docstring's value would not equal the description, its backslashes, triple quotes and null characters are
    escaped. The test is code, and its escapes mean the same in the docstring as in its own strings. It is escaped only
    if the docstring would otherwise not parse or would end inside it.

    Args:
        text: The description.
        code: The gold program. The prompt contains it up to the colon of the entry point's `def` line.
        tests: The unit tests, of which the first one is shown.
        style: "paper" keeps helper code above the entry point, as the paper does, which reveals part of the gold
            program; "no_leak" keeps only the imports.

    Raises:
        ValueError: `code` does not parse, or not exactly one of its functions is called by every test.
    """
    name = entry_point(code, tests)
    head = code[: _header_end(code, name)]
    if style == "no_leak":
        node = _definition(code, name)
        kept = [
            n for n in ast.parse(code).body if n.lineno < node.lineno and isinstance(n, ast.Import | ast.ImportFrom)
        ]
        # A decorator that is defined above the function is left out with its definition.
        imported = {(alias.asname or alias.name).split(".")[0] for n in kept for alias in n.names}
        read = {n.id for one in node.decorator_list for n in ast.walk(one) if isinstance(n, ast.Name)}
        first = node.decorator_list[0].lineno if node.decorator_list and read <= imported | _BUILT_IN else node.lineno
        head = "".join(ast.unparse(n) + "\n" for n in kept) + head[_start(code, first) :]
    text = text if _docstring_value(text) == f"\n{text}\n" else _escaped(text)
    example = tests[0][7:].replace("==", "=") if tests[0].startswith("assert ") else tests[0].strip()
    example = _escaped(example) if '"""' in example or _docstring_value(example) is None else example
    return f'"""\n{text}\n\n>>> Example: {example}\n"""\n\n{head}\n'


def script_prompt(text: str, given: str, expected: str) -> str:
    """Return the prompt of a task with inputs and outputs: its description, and the first input and output.

    The format is the paper's without a `def` line, as the whole program follows the docstring. Backslashes, triple
    quotes and null characters in the docstring are escaped if its value would otherwise not equal the text.
    """
    example = [">>> Example input:", given.rstrip("\n"), ">>> Example output:", expected.rstrip("\n")]
    lines = "\n".join([text, "", *example])
    lines = lines if _docstring_value(lines) == f"\n{lines}\n" else _escaped(lines)
    return f'"""\n{lines}\n"""\n\n'


def _docstring_value(lines: str) -> object:
    """Return the value of `lines` between triple quotes, or None if Python can't parse it."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about invalid escapes
            return ast.literal_eval(f'"""\n{lines}\n"""')
    except (SyntaxError, ValueError):
        return None


def _escaped(lines: str) -> str:
    r"""Return the text between triple quotes whose value is `lines`.

    >>> print(_escaped(r"$\xi$"))
    $\\xi$
    """
    return lines.replace("\\", "\\\\").replace('"""', '""\\"').replace("\0", r"\x00")


def _is_open(text: str) -> bool:
    """Return whether `text` ends inside a bracket, a triple-quoted string, or one that a backslash continues."""
    try:
        for _ in _tokens(text):
            pass
    except tokenize.TokenError as error:
        if "unterminated string" in str(error):  # from Python 3.12 on, also for a string with a backslash at its end
            return _CONTINUED.search(text) is not None
        return "multi-line" in str(error) or "triple-quoted" in str(error)
    except SyntaxError:  # inconsistent indentation is an error, but not an open bracket or string
        pass
    return False


def function_end(completion: str) -> int | None:
    r"""Return the offset in `completion` at which the function's body ends, or None if it may continue.

    The body ends at the first line that starts a statement at the top level, outside brackets and strings.

    >>> function_end("    return x\n\nprint(1)")
    14
    >>> function_end("    return (\n1)") is None
    True
    """
    for match in _TOP_LEVEL.finditer(completion):
        if not _is_open(completion[: match.start()]):
            return match.start()
    return None


def script_end(completion: str) -> int | None:
    """Return the offset in `completion` at which another prompt begins, or None if the program may continue.

    A whole program has no end of its own. If a model continues after it, the text looks like prompts or Markdown: a
    line with triple quotes, a heading of the refine prompt or a code fence, outside brackets and strings.
    """
    for match in _ANOTHER.finditer(completion):
        before = completion[: match.start()]
        if before.strip() and not _is_open(before):
            return match.start()
    return None


def ended(completion: str, script: bool = False) -> bool:
    """Return whether a completion continues past the end of its program (see `cut`). Call it after each new token."""
    start = completion.rfind("\n") + 1
    if script:  # the last line may still change
        return script_end(completion[:start]) is not None
    last = completion[start:]
    # A function can have ended only if the last line starts a statement in the first column.
    return bool(last) and not last[0].isspace() and last[0] != "#" and function_end(completion) is not None


def cut(completion: str, script: bool = False) -> str:
    """Return `completion` up to the end of the program, without trailing blanks and top-level comments.

    Args:
        completion: A model's completion of a task's prompt.
        script: Whether it is a whole program, which ends where another prompt begins, rather than a function's body.
    """
    body = completion[: script_end(completion) if script else function_end(completion)]
    return body if _is_open(body) else _without_trailing_comments(body)


def _without_trailing_comments(body: str) -> str:
    """Return `body`, which ends outside brackets and strings, without trailing blanks and top-level comments."""
    found = _TRAILING_COMMENTS.sub("", body)
    if not _is_open(found):
        return found
    last = 1  # the line of the last token, as lines of a string may look like comments
    with contextlib.suppress(tokenize.TokenError, SyntaxError):
        for token in _tokens(body):
            last = last if token.type in _LAYOUT else token.end[0]
    return body[: _start(body, last + 1)].rstrip()


def as_paper_scores(completion: str) -> str:
    r"""Return the text that the paper's own evaluation would execute after the prompt, in place of `completion`.

    The authors' code (Chen et al., nyu-mll/ILF-for-code-generation) gives a completion that does not start with four
    spaces this indentation, but only in its first line. It truncates every completion before the first line that
    starts with a letter, `#` or `"`. It re-indents nothing else, so that a longer body with another indentation, as in
    many gold programs, raises an IndentationError. Only results with this scoring are comparable to the paper's.

    >>> as_paper_scores("  y = x\n  return y\n\nprint(1)")
    '    y = x\n  return y\n\n'
    """
    if not completion.startswith("    "):
        line, newline, below = completion.partition("\n")
        completion = f"    {line.strip()}{newline}{below}"
    end = _PAPER_CUTS.search(completion)
    return completion[: end.start()] if end else completion


def completion_of(prompt: str, program: str, name: str) -> str:
    """Return the completion of `prompt` that gives a program equivalent to `program`.

    Everything after the entry point's `def` line is kept unchanged, except a docstring that the prompt already
    contains, as with HumanEval. Imports above the entry point that the prompt lacks become the first lines of the body.
    Functions below the entry point are kept, although sampling would stop there.

    Args:
        prompt: The prompt of the task.
        program: A whole program.
        name: The name of the entry point; empty for tasks with inputs and outputs, whose programs follow the prompt
            unchanged.

    Raises:
        ValueError: `program` does not parse, does not define `name`, or needs code above the entry point that the
            prompt does not have and that is not an import of named objects. Without `name`: it contains a line at which
            sampling would stop.
    """
    if not name:
        return _script_after(prompt, program)
    node = _definition(program, name)
    if program.startswith(prompt) and node.lineno <= prompt.count("\n"):  # it continues the prompt
        return _without_trailing_comments(program[len(prompt) :])
    rest = program[_header_end(program, name) :]
    line = lines_of(rest, keepends=True)[0]
    if node.body[0].lineno == node.lineno:  # the body is on the `def` line
        indent, body = "    ", "    " + rest.strip()
    else:
        indent = _INDENT.match(program, _start(program, node.body[0].lineno))[0]  # type: ignore[index]
        body = rest if line.strip() else rest[len(line) :]
    given = {ast.dump(n) for n in ast.parse(f"{prompt}    pass").body}
    missing = [n for n in ast.parse(program).body if n.lineno < node.lineno and ast.dump(n) not in given]
    missing = [n for n in missing if not (isinstance(n, ast.Expr) and isinstance(n.value, ast.Constant))]
    missing = [n for n in missing if not (isinstance(n, ast.ImportFrom) and n.module == "__future__")]
    if other := [n for n in missing if not isinstance(n, ast.Import | ast.ImportFrom) or n.names[0].name == "*"]:
        raise ValueError(f"line {other[0].lineno} of the program, above {name!r}, is not in the prompt")
    shown = _definition(f"{prompt}    pass", name).decorator_list
    if list(map(ast.dump, node.decorator_list)) != list(map(ast.dump, shown)):
        raise ValueError(f"the decorators of {name!r} are not those in the prompt")
    return "".join(f"{indent}{ast.unparse(n)}\n" for n in missing) + _without_trailing_comments(body)


def _script_after(prompt: str, program: str) -> str:
    ast.parse(program)
    text = program.removeprefix(prompt).strip("\n")
    if (end := script_end(text)) is not None:
        line = text[end:].partition("\n")[0]
        raise ValueError(f"sampling would end the program before {line!r}, which may begin another prompt")
    return _without_trailing_comments(text)

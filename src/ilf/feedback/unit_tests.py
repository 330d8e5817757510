"""Feedback without an annotator: unit-test results on one of the policy's own incorrect programs, as text."""

from __future__ import annotations

import ast
import random
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from ilf.feedback.source import Failing, Source, Writing
from ilf.tasks.prompts import lines_of
from ilf.types import Feedback, Program, Task, derive_seed

_RESULT = "the result is "
_ENDLESS = "The program does not come to an end."
_INPUT = re.compile(r"(?s)input (\d+): (.*)")
_SAID = {"the output is": "it prints", "exit status": "it ends with exit status", "ended early": "it ended early"}
_PART = re.compile(r"(word|line) (\d+) of the output is (.*)")
_LONG = 200  # maximum number of characters to show of an input or output
_LINE = re.compile(r"(?s)(.*) \(line (\d+)\)")
_LIMITS = {
    "memory": "It takes more memory than it may have",
    "processes": "It starts more threads or processes than it may have",
    "output": "It prints or returns more than it may",
    "disk": "It writes more to files than it may",
}


def in_words(program: Program, task: Task) -> str:
    """Return a description of a failure: the call, the expected result, and the actual result or error with its line.

    The text is the same on every machine. For a program that does not terminate, it omits the time after which the
    program was stopped.
    """
    verdict, detail = program.verdict, program.verdict.detail
    if task.inputs:
        return _on_input(program, task)
    if verdict.verdict == "timed_out":
        return _ENDLESS
    tests = (*task.tests, *task.challenge)
    lines = [line.strip() for test in tests for line in test.split("\n")]  # of a multi-line test, the line that failed
    test = _named(detail, [*tests, *lines])
    said = detail if test is None else detail[len(test) :].removeprefix(": ")
    found = _what_came(said, program)
    if verdict.verdict in _LIMITS:
        found = _LIMITS[verdict.verdict] + (f": {found}" if found else "")
    if test is None:  # it failed before any test, or in an unknown test
        return f"The program does not run: {found}."
    call, expected = _sides(test)
    passed = _passed(verdict.tests, "tests")
    if expected is None or not found:
        call = call if expected is None else f"{call} == {expected}"
        return f"This test should hold, and does not: `{call}`" + (f" ({found})." if found else ".") + passed
    return f"`{call}` should return `{expected}`, but {found}.{passed}"


def _named(detail: str, tests: Sequence[str]) -> str | None:
    """Return the test that a verdict's detail begins with, or of which it is the beginning because details are cut."""
    whole = [test for test in tests if test and (detail == test or detail.startswith(f"{test}: "))]
    cut = [test for test in tests if detail and test.startswith(detail)]
    return max(whole, key=len) if whole else next(iter(cut), None)


def _on_input(program: Program, task: Task) -> str:
    """Return a description of a script's failure: the input, the expected output, and the actual output or error."""
    verdict, passed = program.verdict, _passed(program.verdict.tests, "inputs")
    match = _INPUT.fullmatch(verdict.detail)
    if match and re.match(r"(Syntax|Indentation|Tab)Error", match[2]):
        return f"The program does not run: {_what_came(match[2], program)}."
    if match is None:  # the input is unknown
        return _ENDLESS if verdict.verdict == "timed_out" else f"The program does not run: {verdict.detail}."
    # The verdict covers the last inputs, as the input that the prompt shows may be left out.
    place, said = int(match[1]) - 1 + len(task.inputs) - len(verdict.tests), match[2]
    expected, given = task.outputs[place], f"On the input {_shown(task.inputs[place])}"
    if verdict.verdict == "timed_out":
        return f"{given}, the program does not come to an end.{passed}"
    if verdict.verdict in _LIMITS:
        limit = _LIMITS[verdict.verdict]
        return f"{given}, {limit[0].lower()}{limit[1:]}: {_what_came(said, program)}.{passed}"
    if part := _PART.fullmatch(said):
        unit, number = part[1], int(part[2])
        words = expected.encode().split(None if unit == "word" else b"\n")  # as the judge splits them
        wanted = _shown(words[number - 1].decode())
        return f"{given}, {unit} {number} of the output should be {wanted}, but is {part[3]}.{passed}"
    found = next((said.replace(a, b, 1) for a, b in _SAID.items() if said.startswith(a)), _what_came(said, program))
    return f"{given}, the program should print {_shown(expected)}, but {found}.{passed}"


def _shown(text: str) -> str:
    shown = repr(text.rstrip("\n"))
    return shown if len(shown) <= _LONG else f"{shown[:_LONG]} ..."


def _passed(outcomes: Sequence[bool], what: str) -> str:
    return f" It passes {sum(outcomes)} of {len(outcomes)} {what}." if any(outcomes) else ""


def _what_came(said: str, program: Program) -> str:
    if said.startswith(_RESULT):
        return f"it returns `{said.removeprefix(_RESULT)}`"
    if match := _LINE.fullmatch(said):
        error, number = match[1], int(match[2])
        lines = lines_of(program.program)
        # A number beyond the program is that of a line in code that the program compiles itself.
        line = lines[number - 1].strip() if number <= len(lines) else ""
        return f"line {number}" + (f", `{line}`," if line else "") + f" raises {error}"
    return f"it raises {said}" if re.match(r"[\w.]+(Error|Exception|Exit|Interrupt)\b", said) else said


def _sides(test: str) -> tuple[str, str | None]:
    """Return the call and the expected value of a test, or the whole test and None if it is not `call == value`."""
    try:
        statement = ast.parse(test.strip()).body[0]
    except SyntaxError:  # a line of a multi-line statement
        return test, None
    match statement:
        case ast.Assert(test=ast.Compare(left=left, ops=[ast.Eq()], comparators=[right])):
            return ast.unparse(left), ast.unparse(right)
        case ast.Assert(test=condition):
            return ast.unparse(condition), None
    return test, None


@dataclass
class Choosing(Source):
    """The base class of sources that give feedback on one of the policy's own incorrect programs for each task.

    Args:
        choose: The program to choose. most_passed: one that passes the most tests and so is likely to be the easiest to
            correct, as the paper asks annotators to pick; random: any. The seed decides among equals.
    """

    choose: Literal["most_passed", "random"] = "most_passed"

    def chosen(self, failing: Failing, seed: int) -> list[Program]:
        """Return one incorrect program of each task, in order of task id."""
        found = []
        for i in sorted(failing):
            most = max(sum(p.verdict.tests) for p in failing[i]) if self.choose == "most_passed" else 0
            best = [p for p in failing[i] if self.choose == "random" or sum(p.verdict.tests) == most]
            found.append(random.Random(derive_seed(seed, "annotate", i)).choice(best))
        return found


@dataclass
class UnitTests(Choosing):
    """Feedback that describes the unit-test results of one of the policy's own incorrect programs as text."""

    name = "unit_tests"
    refines = False
    reads_path = False
    repeatable = True

    def write(self, failing: Failing, run: Writing) -> list[Feedback]:
        """Return feedback on one program of each failing task."""
        return [
            Feedback(p.task_id, p.split, p.program, in_words(p, run.tasks.by_id[p.task_id]), self.name)
            for p in self.chosen(failing, run.seed)
        ]

"""Feedback by a script, mini's annotator. It knows what each task requires, and reads programs by syntax tree.

The script picks the incorrect program that needs the fewest corrections, as the paper's annotators do, describes what
is wrong, and corrects only that. It can read only programs with a loop or a comprehension over the task's items.
"""

from __future__ import annotations

import ast
import copy
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

from ilf.feedback.source import Failing, Source, Writing
from ilf.tasks.mini_grammar import Names, Sketch, Specification
from ilf.types import Feedback, InputError, Program, Task, derive_seed

_SENTENCES: dict[str, tuple[str, ...]] = {
    "loop": (
        "The loop should go over `{right}`, not `{wrong}`.",
        "It goes over `{wrong}`; go over `{right}` to get the {nouns} that are meant.",
        "Loop over `{right}` instead.",
    ),
    "test": (
        "The condition should be `{right}`, since only {items} count.",
        "Only {items} should be used, but the condition is `{wrong}`.",
        "`{wrong}` is not the test for {items}: use `{right}`.",
    ),
    "test missing": (
        "All {nouns} are used. Add the condition `{right}`.",
        "There is no condition, but only {items} count.",
        "It forgets that only {items} count: check `{right}` first.",
    ),
    "test too much": (
        "All {nouns} count, so the condition `{wrong}` is too much.",
        "Remove the condition `{wrong}`.",
    ),
    "value": (
        "For each of the {nouns} it should take {each}: `{right}` instead of `{wrong}`.",
        "`{wrong}` is not {each}.",
        "Use `{right}`, not `{wrong}`.",
    ),
    "start": (
        "`{acc}` should start as `{right}`, not as `{wrong}`.",
        "The start value `{wrong}` is wrong: begin with `{right}`.",
    ),
    "update": (
        "It should build up `{acc}` by `{right}`, not by `{wrong}`.",
        "The line `{wrong}` is wrong: write `{right}`.",
    ),
    "answer": (
        "It should return `{right}`, not `{wrong}`.",
        "At the end, return `{right}`.",
        "Returning `{wrong}` is wrong, as it should {reduction}.",
    ),
    "early": (
        "The return stands inside the loop, which ends after the first of the {nouns}: move it behind the loop.",
        "It returns too early: the return belongs after the loop.",
    ),
    "not early": ("The return belongs inside the loop.",),
}


def annotate(
    failing: Mapping[int, Sequence[Program]],
    tasks: Mapping[int, Task],
    specifications: Mapping[int, Specification],
    seed: int,
) -> list[Feedback]:
    """Return feedback and refinement for one incorrect program of each failing task, where the script can read one.

    Args:
        failing: The incorrect programs of each failing task, by task id.
        tasks: The tasks by id.
        specifications: What each task requires, by id.
        seed: Chooses among programs that need equally few corrections, and among phrasings.
    """
    feedback = []
    for task_id in sorted(failing):
        task, specification = tasks[task_id], specifications[task_id]
        rng = random.Random(derive_seed(seed, "annotate", task_id))
        candidates = []
        for program in sorted({p.program for p in failing[task_id]}):
            if (known := read(program, task.entry_point)) is not None:
                found, names = known
                right = specification.sketch(short=found.update is None)
                if count := len(differences(found, right)):
                    candidates.append((count, rng.random(), program, found, right, names))
        if candidates:
            _, _, program, found, right, names = min(candidates, key=lambda c: c[:2])
            text = review(specification, found, right, names, rng)
            split = failing[task_id][0].split
            slots = tuple(differences(found, right))
            better = task.prompt + right.body(names)
            feedback.append(Feedback(task_id, split, program, text, "scripted", better, len(slots), slots))
    return feedback


def differences(found: Sketch, right: Sketch) -> list[str]:
    """Return the names of the slots in which two sketches differ."""
    return [f.name for f in fields(Sketch) if getattr(found, f.name) != getattr(right, f.name)]


def review(specification: Specification, found: Sketch, right: Sketch, names: Names, rng: random.Random) -> str:
    """Return the feedback that describes the corrections from `found` to `right`, with one sentence per slot."""
    source, nouns = specification.source, specification.source.nouns[0]
    reduction = specification.reduction.phrases[0].format(values="them")
    if right.update is None:  # a comprehension has no accumulator variable
        names = replace(names, acc="...")
    sentences = []
    for slot in differences(found, right):
        wrong_code, right_code = getattr(found, slot), getattr(right, slot)
        kind = slot
        if slot == "test" and wrong_code is None:
            kind = "test missing"
        elif slot == "test" and right_code is None:
            kind = "test too much"
        elif slot == "early" and right_code:
            kind = "not early"
        if slot == "update":  # compare whole lines, both with the correct value
            wrong_code, right_code = replace(right, update=found.update).update_line(), right.update_line()
        sentence = rng.choice(_SENTENCES[kind])
        sentences.append(
            sentence.format(
                wrong=names.into(str(wrong_code)),
                right=names.into(str(right_code)),
                acc=names.acc,
                nouns=nouns,
                items=specification.items_phrase(nouns),
                each=specification.map.each.format(noun=source.kind, k=specification.m),
                reduction=reduction,
            )
        )
    return " ".join(sentences)


def read(program: str, entry_point: str) -> tuple[Sketch, Names] | None:
    """Return a program's sketch and its names, or None if no sketch can represent the program."""
    try:
        definitions = [n for n in ast.parse(program).body if isinstance(n, ast.FunctionDef) and n.name == entry_point]
    except (SyntaxError, ValueError, RecursionError, MemoryError):  # what the parser raises on invalid code
        return None
    if not definitions or len(definitions[-1].args.args) != 1:
        return None
    arg = definitions[-1].args.args[0].arg
    match [line for line in definitions[-1].body if not isinstance(line, ast.ImportFrom)]:
        case [ast.Return(value=ast.expr() as answer)]:
            return _comprehension(answer, arg)
        case [ast.Assign(targets=[ast.Name(id=acc)], value=start), ast.For() as loop, *rest]:
            return _loop(loop, rest, start, arg, acc)
    return None


def _comprehension(answer: ast.expr, arg: str) -> tuple[Sketch, Names] | None:
    inner = [node for node in ast.walk(answer) if isinstance(node, ast.ListComp)]
    match inner:
        case [ast.ListComp(elt=value, generators=[ast.comprehension(ast.Name(id=item), loop, tests)])] if (
            len(tests) <= 1
        ):
            names = Names(arg, item, "acc")
            test = _canonical(tests[0], names) if tests else None
            outer = _canonical(_Replace().visit(copy.deepcopy(answer)), names)
            return Sketch(_canonical(loop, names), test, _canonical(value, names), outer), names
    return None


def _loop(loop: ast.For, rest: list[ast.stmt], start: ast.expr, arg: str, acc: str) -> tuple[Sketch, Names] | None:
    if not isinstance(loop.target, ast.Name) or loop.orelse:
        return None
    names = Names(arg, loop.target.id, acc)
    inside, test = loop.body, None
    returns = [line for line in (*rest, *inside) if isinstance(line, ast.Return)]
    early, inside = not rest, [line for line in inside if not isinstance(line, ast.Return)]
    match inside:
        case [ast.If(test=condition, body=[line], orelse=[])]:
            test, inside = _canonical(condition, names), [line]
    match inside:
        case [ast.Expr(ast.Call(ast.Attribute(ast.Name(id=target), "append"), [value], []))] if target == acc:
            update = "append"
        case [ast.AugAssign(ast.Name(id=target), op, value)] if target == acc:
            update = ast.unparse(ast.AugAssign(ast.Name("a"), op, ast.Name("b"))).split()[1]
        case [ast.Assign([ast.Name(id=target)], ast.BinOp(value, ast.Add(), ast.Name(id=also)))] if (
            target == also == acc
        ):
            update = "before"
        case [ast.Assign([ast.Name(id=target)], value)] if target == acc:
            update = "="
        case _:
            return None
    match returns:
        case [ast.Return(value=ast.expr() as answer)] if len(rest) <= 1:
            parts = (_canonical(node, names) for node in (loop.iter, value, answer, start))
            over, value_code, answer_code, start_code = parts
            return Sketch(over, test, value_code, answer_code, start_code, update, early), names
    return None


class _Replace(ast.NodeTransformer):
    """Replaces a comprehension with `acc`."""

    def visit_ListComp(self, node: ast.ListComp) -> ast.expr:
        return ast.Name("acc")


class _Rename(ast.NodeTransformer):
    def __init__(self, names: Names) -> None:
        self.names = {names.arg: "arg", names.item: "item", names.acc: "acc"}

    def visit_Name(self, node: ast.Name) -> ast.Name:
        return ast.Name(self.names.get(node.id, node.id))


def _canonical(node: ast.expr, names: Names) -> str:
    """Return the code of an expression with a sketch's names."""
    return ast.unparse(_Rename(names).visit(copy.deepcopy(node)))


@dataclass
class Scripted(Source):
    """Mini's annotator, which writes feedback and a refinement for the program that needs the fewest corrections."""

    name = "scripted"
    reads_path = False
    repeatable = True

    def check(self, settings: Any) -> None:
        """Raise InputError if the data set has no specifications of its tasks."""
        super().check(settings)
        check_specifications(settings.data, "feedback", self.name)

    def write(self, failing: Failing, run: Writing) -> list[Feedback]:
        """Return feedback on one incorrect program of each failing task with a program that the script can read."""
        return annotate(failing, run.tasks.by_id, run.specifications, run.seed)


def check_specifications(data: Any, key: str, value: object) -> None:
    """Raise InputError, naming a setting, if the script does not know what a data set's tasks require."""
    if not data.specifications():
        kind = type(data).__name__.lower()
        allowed = f"scripted needs data=mini, not {kind}: the script knows only what mini's tasks require"
        raise InputError(key, value, allowed, "Choose human or unit_tests, or data=mini.")

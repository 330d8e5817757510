"""The grammar of mini's tasks: specifications, and correct and incorrect programs for them.

A program is represented as a `Sketch`, which has a piece of code for each slot, with the canonical names of
mini_parts.py. `Sketch.body` then writes the program with its own names.
"""

from __future__ import annotations

import random
import re
from dataclasses import dataclass, replace
from typing import Any

from ilf.tasks.mini_parts import FILTERS, MAPS, REDUCTIONS, SOURCES, Filter, Map, Part, Reduction, Source

INDENT = "    "

_SHORT_MISTAKES = {  # mistakes in what is returned, for comprehensions
    "max(acc)": "min(acc)",
    "min(acc)": "max(acc)",
    "sorted(acc)": "acc",
    "len(set(acc))": "len(acc)",
    "acc[-1]": "acc[0]",
    "''.join(acc[::-1])": "''.join(acc)",
}


@dataclass(frozen=True)
class Names:
    """A program's own names for the canonical names `arg`, `item` and `acc` of a `Sketch`."""

    arg: str
    item: str
    acc: str

    def into(self, code: str) -> str:
        """Return `code` with these names."""
        return re.sub(r"\b(arg|item|acc)\b", lambda match: str(getattr(self, match[0])), code)


@dataclass(frozen=True)
class Sketch:
    """A program as code for each slot, with the canonical names `item`, `acc` and `arg`."""

    loop: str  # the iterable
    test: str | None  # the condition on the items to use; None uses all
    value: str
    answer: str  # what is returned
    start: str | None = None  # the initial value of acc; None, with update None, for a comprehension
    update: str | None = None
    early: bool = False  # whether it returns inside the loop

    def update_line(self) -> str:
        """Return the statement that adds a value to `acc`."""
        updates = {"append": f"acc.append({self.value})", "before": f"acc = {self.value} + acc"}
        return updates.get(self.update or "", f"acc {self.update} {self.value}")

    def body(self, names: Names) -> str:
        """Return the lines after the `def` line, with these names, without a newline at the end."""
        if self.update is None:
            test = f" if {self.test}" if self.test else ""
            inner = f"[{self.value} for item in {self.loop}{test}]"
            lines = ["return " + re.sub(r"\bacc\b", lambda _: inner, self.answer)]
            if "prod(" in self.answer:
                lines.insert(0, "from math import prod")
        else:
            update = self.update_line()
            inside = [f"if {self.test}:", INDENT + update] if self.test else [update]
            lines = [f"acc = {self.start}", f"for item in {self.loop}:", *(INDENT + line for line in inside)]
            lines.append((INDENT if self.early else "") + f"return {self.answer}")
        return "\n".join(INDENT + names.into(line) for line in lines)


@dataclass(frozen=True)
class Specification:
    """What a program must do."""

    source: Source
    filter: Filter
    k: Any  # the filter's constant
    map: Map
    m: Any  # the map's constant
    reduction: Reduction

    @property
    def key(self) -> str:
        """A string that is equal for equal specifications only."""
        parts = (self.source.name, self.filter.name, self.k, self.map.name, self.m, self.reduction.name)
        return "/".join(map(str, parts))

    def values(self, data: Any) -> list[Any]:
        """Return the mapped values of the items that pass the filter."""
        kept = [item for item in self.source.items(data) if self.filter.keep(item, self.k)]
        return [self.map.apply(item, self.m) for item in kept]

    def answer(self, data: Any) -> Any:
        """Return what a correct program returns for the argument `data`."""
        return self.reduction.fold(self.values(data))

    def items_phrase(self, nouns: str) -> str:
        """Return the phrase for the items that pass the filter, such as "even numbers"."""
        return self.filter.phrase.format(nouns=nouns, k=self.k)

    def text(self, rng: random.Random) -> str:
        """Return the description of the task, in one of several phrasings."""
        items = f"{self.items_phrase(rng.choice(self.source.nouns))} {rng.choice(self.source.places)}"
        values = self.map.phrase.format(items=items, k=self.m)
        opening = rng.choice(("Write a function to", "Write a python function to", "Create a function to"))
        return f"{opening} {rng.choice(self.reduction.phrases).format(values=values)}."

    def function_name(self) -> str:
        """Return a name for the function, such as "sum_squares_even"."""
        name = "_".join(filter(None, (self.reduction.name, self.map.name, self.filter.name)))
        return name if "_" in name else f"{name}_{self.source.name}"

    def sketch(self, short: bool) -> Sketch:
        """Return a correct program: a loop, or (`short`) a comprehension."""
        reduction = self.reduction
        test = self.filter.code.format(k=self.k) or None
        value = self.map.code.format(k=self.m)
        if short:
            return Sketch(self.source.code, test, value, reduction.short)
        return Sketch(
            self.source.code, test, reduction.value or value, reduction.code, reduction.start, reduction.update
        )

    def mistakes(self, sketch: Sketch) -> list[tuple[Part, list[Sketch]]]:
        """Return, for each component, the incorrect versions of `sketch` that people write, the most common first."""
        reduction, short = self.reduction, sketch.update is None
        tests = [m and m.format(k=self.k) for m in self.filter.mistakes]
        wrong_values = [m.format(k=self.m) for m in self.map.mistakes if m] if sketch.value != "1" else []
        if short:
            answers = [_SHORT_MISTAKES[sketch.answer]] if sketch.answer in _SHORT_MISTAKES else []
            of_reduction = [replace(sketch, answer=answer) for answer in answers]
        else:
            of_reduction = [
                *(replace(sketch, answer=answer) for answer in reduction.mistakes if answer),
                *(replace(sketch, start=start) for start in reduction.wrong_starts),
                *(replace(sketch, update=update) for update in reduction.wrong_updates),
                replace(sketch, early=True),
            ]
        found: list[tuple[Part, list[Sketch]]] = [
            (self.source, [replace(sketch, loop=code) for code in self.source.mistakes if code]),
            (self.filter, [replace(sketch, test=code) for code in tests]),
            (self.map, [replace(sketch, value=code) for code in wrong_values]),
            (reduction, of_reduction),
        ]
        return [(part, sketches) for part, sketches in found if sketches]


def draw_specification(rng: random.Random) -> Specification:
    """Return a random specification."""
    while True:
        source = rng.choices(SOURCES, (7, 3, 3, 3, 4))[0]
        filters = [f for f in FILTERS if f.kind == source.kind and (not f.sources or source.name in f.sources)]
        maps = [m for m in MAPS if m.kind == source.kind and (not m.sources or source.name in m.sources)]
        # The neutral component of each kind comes first.
        chosen = filters[0] if rng.random() < 0.15 else rng.choice(filters[1:])
        mapped = maps[0] if rng.random() < 0.3 else rng.choice(maps[1:])
        reduction = rng.choice([r for r in REDUCTIONS if mapped.gives in r.takes])
        dull = not chosen.code and not mapped.name
        if reduction.name == "count":  # ignores the values
            dull = bool(mapped.name) or not chosen.code
        if reduction.name == "product" and mapped.name in (
            "minus",
            "halves",
            "remainders",
            "codes",
        ):  # gives 0 or a huge number
            dull = True
        if not dull:
            k, m = rng.choice(chosen.constants), rng.choice(mapped.constants)
            return Specification(source, chosen, k, mapped, m, reduction)


def draw_names(specification: Specification, arg: str | None, rng: random.Random) -> Names:
    """Return distinct names for the argument (given or sampled), the loop variable and the accumulator."""
    source = specification.source
    arg = arg or rng.choice(source.arguments)
    item = rng.choice([name for name in source.variables if name != arg])
    numbers = ("total", "result") if specification.reduction.start in ("0", "1") else ("result", "out")
    return Names(arg, item, rng.choice(numbers))


_WORDS = [
    "apple", "sun", "blue", "mountain", "tree", "Under", "ocean", "idea", "note", "Red", "hello", "lamp", "end", "run",
    "table", "sea", "ear", "uncle", "Paris", "moon", "data", "map", "total", "up", "elephant", "boat", "open", "rain",
    "item", "bus", "summer", "unit", "pond",
]  # fmt: skip


def draw_argument(specification: Specification, rng: random.Random) -> Any:
    """Return a small argument for a test of `specification`, with values near its constants."""
    name, k = specification.source.name, specification.k
    if name == "list":
        values = [rng.randint(-6, 12) if rng.random() < 0.5 else rng.randint(0, 9) for _ in range(rng.randint(3, 6))]
        near = [k, k + 1, k - 1][: rng.randint(0, 3)] if isinstance(k, int) else []
        values = values[: 6 - len(near)] + near
        if rng.random() < 0.4:
            values[0] = values[-1]
        rng.shuffle(values)
        return values
    if name == "digits":
        digits = [rng.randint(1, 9) for _ in range(rng.randint(3, 6))]
        if isinstance(k, int):
            digits[rng.randrange(1, len(digits))] = k
        return int("".join(map(str, digits)))
    if name == "range":
        return rng.randint(3, 12)
    words = rng.sample(_WORDS, rng.randint(2, 5))
    if isinstance(k, str):
        fitting = [w for w in _WORDS if (k in w if name == "string" else specification.filter.keep(w, k))]
        words[0] = rng.choice(fitting or _WORDS)
    if name == "words":
        return " ".join(words)
    text = " ".join(words[:2])
    return text + rng.choice(("", str(rng.randint(1, 99)), " " + rng.choice("ABEU")))

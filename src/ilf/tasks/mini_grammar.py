"""The grammar of mini's tasks: which items, which of them, what is done with each, and what becomes of all.

A `Specification` picks one part of each kind: the sum (reduction) of the squares (map) of the even (filter) numbers in a
list (source). Each part knows its words, its code, what it does, and the mistakes that people make with it. Programs are
handled as a `Sketch`: one piece of code a slot, in which the loop's variable is called `item`, what is built up `acc` and
the argument `arg`, until `Sketch.body` writes it down with real names.
"""

from __future__ import annotations

import math
import random
import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

INDENT = "    "


@dataclass(frozen=True)
class Part:
    """What every part of a specification has. In `code` and the texts, {k} is the part's constant."""

    name: str  # goes into the function's name
    code: str
    mistakes: tuple[str | None, ...] = ()  # wrong code for the same slot, the usual one first; None leaves the slot out
    habit: float = 0.05  # how often the corpus has a mistake here


@dataclass(frozen=True)
class Source(Part):
    """Which items there are."""

    kind: str = "number"  # of item: "number", "character" or "word"
    nouns: tuple[str, ...] = ()
    places: tuple[str, ...] = ()
    arguments: tuple[str, ...] = ()
    variables: tuple[str, ...] = ()
    items: Callable[[Any], list[Any]] = list


@dataclass(frozen=True)
class Filter(Part):
    """Which items count."""

    kind: str = "number"
    phrase: str = "{nouns}"
    keep: Callable[[Any, Any], bool] = lambda item, k: True
    constants: tuple[Any, ...] = (None,)
    sources: tuple[str, ...] = ()  # names of the sources that it is for; empty for all of its kind


@dataclass(frozen=True)
class Map(Part):
    """What is taken of each item."""

    kind: str = "number"
    phrase: str = "the {items}"
    each: str = "the {noun} itself"
    apply: Callable[[Any, Any], Any] = lambda item, k: item
    constants: tuple[Any, ...] = (None,)
    gives: str = "text"
    sources: tuple[str, ...] = ()


@dataclass(frozen=True)
class Reduction(Part):
    """What becomes of the values. `code` is what is returned at the end of a loop."""

    takes: tuple[str, ...] = ("number",)
    phrases: tuple[str, ...] = ()
    start: str = "[]"
    update: str = "append"  # "append", or the operator of an assignment: "+=", "*=", "="; "before" is acc = value + acc
    value: str | None = None  # in place of the map's value
    short: str = "acc"  # what is returned of a comprehension, which is acc here
    fold: Callable[[list[Any]], Any] = list
    wrong_starts: tuple[str, ...] = ()
    wrong_updates: tuple[str, ...] = ()
    needs_items: bool = False  # undefined without any


_COMPARED = tuple(range(2, 9))
_DIVISORS = tuple(range(2, 7))
_LETTERS = tuple("adelmnoprst")

SOURCES = (
    Source(
        "list", "arg", kind="number", nouns=("numbers", "integers", "elements"),
        places=("in a list", "of a given list", "in a list of integers"),
        arguments=("nums", "numbers", "values", "lst"), variables=("x", "num", "n", "value"),
    ),
    Source(
        "digits", "map(int, str(arg))", ("str(arg)",), 0.06, kind="number", nouns=("digits",),
        places=("of a number", "of a given integer", "in a positive number"),
        arguments=("n", "number", "num"), variables=("d", "digit", "x"), items=lambda n: [int(d) for d in str(n)],
    ),
    Source(
        "range", "range(1, arg + 1)", ("range(1, arg)", "range(arg)"), 0.88, kind="number",
        nouns=("numbers", "integers"), places=("from 1 to n", "between 1 and n inclusive"),
        arguments=("n",), variables=("i", "x", "num"), items=lambda n: list(range(1, n + 1)),
    ),
    Source(
        "string", "arg", kind="character", nouns=("characters",),
        places=("in a string", "of a given string", "in a text"),
        arguments=("text", "s", "string"), variables=("c", "ch", "char"),
    ),
    Source(
        "words", "arg.split()", ("arg",), 0.06, kind="word", nouns=("words",),
        places=("in a sentence", "of a given sentence", "in a text"),
        arguments=("text", "sentence", "s"), variables=("w", "word"), items=str.split,
    ),
)  # fmt: skip

FILTERS = (
    Filter("", "", kind="number"),
    Filter("even", "item % 2 == 0", ("item % 2 == 1", None), phrase="even {nouns}", keep=lambda x, k: x % 2 == 0),
    Filter("odd", "item % 2 == 1", ("item % 2 == 0", None), phrase="odd {nouns}", keep=lambda x, k: x % 2 == 1),
    Filter("greater", "item > {k}", ("item >= {k}", "item < {k}"), 0.08, phrase="{nouns} greater than {k}",
           keep=lambda x, k: x > k, constants=_COMPARED),
    Filter("at_least", "item >= {k}", ("item > {k}",), 0.88, phrase="{nouns} that are at least {k}",
           keep=lambda x, k: x >= k, constants=_COMPARED),
    Filter("less", "item < {k}", ("item <= {k}", "item > {k}"), 0.08, phrase="{nouns} less than {k}",
           keep=lambda x, k: x < k, constants=_COMPARED),
    Filter("at_most", "item <= {k}", ("item < {k}",), 0.88, phrase="{nouns} that are at most {k}",
           keep=lambda x, k: x <= k, constants=_COMPARED),
    Filter("divisible", "item % {k} == 0", ("item % {k}", "item // {k} == 0"), 0.08, phrase="{nouns} divisible by {k}",
           keep=lambda x, k: x % k == 0, constants=_DIVISORS),
    Filter("not_divisible", "item % {k} != 0", ("item % {k} == 0",), 0.1, phrase="{nouns} not divisible by {k}",
           keep=lambda x, k: x % k != 0, constants=_DIVISORS),
    Filter("other_than", "item != {k}", ("item == {k}", None), 0.08, phrase="{nouns} other than {k}",
           keep=lambda x, k: x != k, constants=_COMPARED),
    Filter("positive", "item > 0", ("item >= 0", None), 0.08, phrase="positive {nouns}", keep=lambda x, k: x > 0,
           sources=("list",)),
    Filter("negative", "item < 0", ("item > 0", None), 0.08, phrase="negative {nouns}", keep=lambda x, k: x < 0,
           sources=("list",)),
    Filter("", "", kind="character"),
    Filter("vowels", "item in 'aeiou'", ("item in 'aeio'",), 0.88, kind="character", phrase="lower case vowels",
           keep=lambda c, k: c in "aeiou"),
    Filter("not_vowels", "item not in 'aeiou'", ("item in 'aeiou'", None), 0.12, kind="character",
           phrase="{nouns} other than lower case vowels", keep=lambda c, k: c not in "aeiou"),
    Filter("upper_case", "item.isupper()", ("item.islower()", None), kind="character", phrase="upper case letters",
           keep=lambda c, k: c.isupper()),
    Filter("lower_case", "item.islower()", ("item.isupper()", None), kind="character", phrase="lower case letters",
           keep=lambda c, k: c.islower()),
    Filter("letters", "item.isalpha()", ("item.isalnum()",), 0.1, kind="character", phrase="letters",
           keep=lambda c, k: c.isalpha()),
    Filter("numeric", "item.isdigit()", ("item.isalpha()", None), 0.08, kind="character", phrase="digits",
           keep=lambda c, k: c.isdigit()),
    Filter("non_blank", "item != ' '", ("item == ' '", None), 0.08, kind="character", phrase="{nouns} other than blanks",
           keep=lambda c, k: c != " "),
    Filter("without", "item != '{k}'", ("item == '{k}'", None), 0.08, kind="character", phrase="{nouns} other than '{k}'",
           keep=lambda c, k: c != k, constants=_LETTERS),
    Filter("up_to", "item <= '{k}'", ("item < '{k}'",), 0.88, kind="character",
           phrase="{nouns} that sort no later than '{k}'", keep=lambda c, k: c <= k, constants=_LETTERS),
    Filter("", "", kind="word"),
    Filter("longer", "len(item) > {k}", ("len(item) >= {k}", "item > {k}"), 0.08, kind="word",
           phrase="{nouns} longer than {k} letters", keep=lambda w, k: len(w) > k, constants=(2, 3, 4, 5)),
    Filter("at_least", "len(item) >= {k}", ("len(item) > {k}",), 0.88, kind="word",
           phrase="{nouns} of at least {k} letters", keep=lambda w, k: len(w) >= k, constants=(3, 4, 5, 6)),
    Filter("shorter", "len(item) < {k}", ("len(item) <= {k}",), 0.08, kind="word",
           phrase="{nouns} shorter than {k} letters", keep=lambda w, k: len(w) < k, constants=(3, 4, 5, 6)),
    Filter("starting", "item.startswith('{k}')", ("item.endswith('{k}')", None), 0.06, kind="word",
           phrase="{nouns} that start with '{k}'", keep=lambda w, k: w.startswith(k), constants=_LETTERS),
    Filter("ending", "item.endswith('{k}')", ("item.startswith('{k}')",), 0.1, kind="word",
           phrase="{nouns} that end with '{k}'", keep=lambda w, k: w.endswith(k), constants=_LETTERS),
    Filter("containing", "'{k}' in item", ("'{k}' not in item", None), 0.06, kind="word",
           phrase="{nouns} that contain '{k}'", keep=lambda w, k: k in w, constants=_LETTERS),
    Filter("without", "'{k}' not in item", ("'{k}' in item", None), 0.1, kind="word",
           phrase="{nouns} without '{k}'", keep=lambda w, k: k not in w, constants=_LETTERS),
)  # fmt: skip

MAPS = (
    Map("", "item", gives="number"),
    Map("squares", "item ** 2", ("item * 2", "item"), 0.08, phrase="the squares of the {items}", each="its square",
        apply=lambda x, k: x**2, gives="number"),
    Map("cubes", "item ** 3", ("item ** 2",), 0.88, phrase="the cubes of the {items}", each="its cube",
        apply=lambda x, k: x**3, gives="number"),
    Map("doubles", "item * 2", ("item ** 2", "item"), 0.06, phrase="the doubles of the {items}", each="its double",
        apply=lambda x, k: x * 2, gives="number"),
    Map("times", "item * {k}", ("item + {k}", "item"), 0.06, phrase="the {items}, each multiplied by {k}",
        each="it multiplied by {k}", apply=lambda x, k: x * k, constants=(3, 4, 5, 6, 7, 8, 9), gives="number"),
    Map("plus", "item + {k}", ("item - {k}", "item"), 0.06, phrase="the {items}, each increased by {k}",
        each="it increased by {k}", apply=lambda x, k: x + k, constants=tuple(range(1, 10)), gives="number"),
    Map("minus", "item - {k}", ("item + {k}", "item"), 0.12, phrase="the {items}, each decreased by {k}",
        each="it decreased by {k}", apply=lambda x, k: x - k, constants=tuple(range(1, 10)), gives="number"),
    Map("halves", "item // 2", ("item / 2",), 0.88, phrase="the halves, rounded down, of the {items}",
        each="its half, rounded down", apply=lambda x, k: x // 2, gives="number"),
    Map("remainders", "item % {k}", ("item // {k}",), 0.1, phrase="the remainders of the {items} divided by {k}",
        each="its remainder by {k}", apply=lambda x, k: x % k, constants=(3, 4, 5, 6, 7), gives="number"),
    Map("absolute", "abs(item)", ("item", "-item"), 0.08, phrase="the absolute values of the {items}",
        each="its absolute value", apply=lambda x, k: abs(x), gives="number", sources=("list",)),
    Map("", "item", kind="character"),
    Map("upper", "item.upper()", ("item", "item.lower()"), 0.06, kind="character",
        phrase="the {items}, each in upper case", each="it in upper case", apply=lambda c, k: c.upper()),
    Map("lower", "item.lower()", ("item", "item.upper()"), 0.06, kind="character",
        phrase="the {items}, each in lower case", each="it in lower case", apply=lambda c, k: c.lower()),
    Map("swapped", "item.swapcase()", ("item.upper()",), 0.1, kind="character",
        phrase="the {items}, each with its case swapped", each="it with its case swapped",
        apply=lambda c, k: c.swapcase()),
    Map("doubled", "item * 2", ("item",), 0.08, kind="character", phrase="the {items}, each written twice",
        each="it twice", apply=lambda c, k: c * 2),
    Map("codes", "ord(item)", ("int(item)",), 0.12, kind="character", phrase="the character codes of the {items}",
        each="its character code", apply=lambda c, k: ord(c), gives="number"),
    Map("", "item", kind="word"),
    Map("upper", "item.upper()", ("item", "item.lower()"), 0.06, kind="word", phrase="the {items}, each in upper case",
        each="it in upper case", apply=lambda w, k: w.upper()),
    Map("capitalized", "item.capitalize()", ("item.upper()",), 0.1, kind="word",
        phrase="the {items}, each capitalized", each="it capitalized", apply=lambda w, k: w.capitalize()),
    Map("reversed", "item[::-1]", ("item", "item[-1]"), 0.08, kind="word", phrase="the {items}, each spelled backwards",
        each="it spelled backwards", apply=lambda w, k: w[::-1]),
    Map("lengths", "len(item)", ("item",), 0.06, kind="word", phrase="the lengths of the {items}", each="its length",
        apply=lambda w, k: len(w), gives="number"),
    Map("first_letters", "item[0]", ("item[1]",), 0.12, kind="word", phrase="the first letters of the {items}",
        each="its first letter", apply=lambda w, k: w[0]),
    Map("last_letters", "item[-1]", ("item[0]", "item[1]"), 0.1, kind="word", phrase="the last letters of the {items}",
        each="its last letter", apply=lambda w, k: w[-1]),
    Map("without_last", "item[:-1]", ("item[1:]",), 0.88, kind="word",
        phrase="the {items}, each without its last letter", each="it without its last letter",
        apply=lambda w, k: w[:-1]),
)  # fmt: skip

REDUCTIONS = (
    Reduction("sum", "acc", phrases=("find the sum of {values}", "add up {values}", "compute the total of {values}"),
              start="0", update="+=", short="sum(acc)", fold=sum, wrong_starts=("1",), wrong_updates=("=",)),
    Reduction("product", "acc", (), 0.88, phrases=("find the product of {values}", "multiply {values}"),
              start="1", update="*=", short="prod(acc)", fold=math.prod, wrong_starts=("0",)),
    Reduction("count", "acc", takes=("number", "text"), phrases=("count {values}", "find the number of {values}"),
              start="0", update="+=", value="1", short="len(acc)", fold=len, wrong_starts=("1",),
              wrong_updates=("=",)),
    Reduction("list", "acc", takes=("number", "text"), phrases=("get a list of {values}", "collect {values} in a list")),
    Reduction("sorted", "sorted(acc)", ("acc",), 0.1, takes=("number", "text"),
              phrases=("get a sorted list of {values}", "sort {values}"), short="sorted(acc)", fold=sorted),
    Reduction("largest", "max(acc)", ("min(acc)", "acc"), phrases=("find the largest of {values}",
              "find the maximum of {values}"), short="max(acc)", fold=max, needs_items=True),
    Reduction("smallest", "min(acc)", ("max(acc)", "acc"), phrases=("find the smallest of {values}",
              "find the minimum of {values}"), short="min(acc)", fold=min, needs_items=True),
    Reduction("distinct", "len(set(acc))", ("len(acc)",), 0.88, takes=("number", "text"),
              phrases=("count how many different values are among {values}", "count the distinct values of {values}"),
              short="len(set(acc))", fold=lambda values: len(set(values))),
    Reduction("last", "acc[-1]", ("acc[0]", "acc"), 0.1, takes=("number", "text"),
              phrases=("find the last of {values}",), short="acc[-1]", fold=lambda values: values[-1],
              needs_items=True),
    Reduction("joined", "''.join(acc)", ("acc", "' '.join(acc)"), 0.08, takes=("text",),
              phrases=("join {values} into one string", "concatenate {values}"), short="''.join(acc)", fold="".join),
    Reduction("backwards", "acc", (), 0.88, takes=("text",), phrases=("join {values} in reverse order",),
              start="''", update="before", short="''.join(acc[::-1])", fold=lambda values: "".join(values[::-1]),
              wrong_updates=("+=",)),
)  # fmt: skip

_SHORT_MISTAKES = {"max(acc)": "min(acc)", "min(acc)": "max(acc)", "sorted(acc)": "acc", "len(set(acc))": "len(acc)"} | {
    "acc[-1]": "acc[0]", "''.join(acc[::-1])": "''.join(acc)"
}  # fmt: skip


@dataclass(frozen=True)
class Names:
    """A program's own names for what a `Sketch` calls `arg`, `item` and `acc`."""

    arg: str
    item: str
    acc: str

    def into(self, code: str) -> str:
        """Return `code` with these names."""
        return re.sub(r"\b(arg|item|acc)\b", lambda match: str(getattr(self, match[0])), code)


@dataclass(frozen=True)
class Sketch:
    """A program by its slots, in canonical names: `item`, `acc`, `arg`."""

    loop: str  # what is gone over
    test: str | None  # which items count; None for all
    value: str
    answer: str  # what is returned
    start: str | None = None  # of acc; None, with update None, is a comprehension
    update: str | None = None
    early: bool = False  # returns inside the loop

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
    """What a program has to do."""

    source: Source
    filter: Filter
    k: Any  # the filter's constant
    map: Map
    m: Any  # the map's constant
    reduction: Reduction

    @property
    def key(self) -> str:
        """Return the specification in one word, equal for equal ones only."""
        parts = (self.source.name, self.filter.name, self.k, self.map.name, self.m, self.reduction.name)
        return "/".join(map(str, parts))

    def values(self, data: Any) -> list[Any]:
        """Return the mapped values of the items that count."""
        kept = [item for item in self.source.items(data) if self.filter.keep(item, self.k)]
        return [self.map.apply(item, self.m) for item in kept]

    def answer(self, data: Any) -> Any:
        """Return what a correct program returns for the argument `data`."""
        return self.reduction.fold(self.values(data))

    def items_phrase(self, nouns: str) -> str:
        """Return the words for the items that count: "even numbers"."""
        return self.filter.phrase.format(nouns=nouns, k=self.k)

    def text(self, rng: random.Random) -> str:
        """Return the task in words, in one of several phrasings."""
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
        """Return, for each part, the wrong versions of `sketch` that people write, the usual one first."""
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
        # The plain part of each kind comes first.
        chosen = filters[0] if rng.random() < 0.15 else rng.choice(filters[1:])
        mapped = maps[0] if rng.random() < 0.3 else rng.choice(maps[1:])
        reduction = rng.choice([r for r in REDUCTIONS if mapped.gives in r.takes])
        dull = not (chosen.code or mapped.name) or (
            reduction.name == "count"
            and (mapped.name or not chosen.code)  # as many as there are items
            or reduction.name == "product"
            and mapped.name in ("minus", "halves", "remainders", "codes")  # often 0, or huge
        )
        if not dull:
            k, m = rng.choice(chosen.constants), rng.choice(mapped.constants)
            return Specification(source, chosen, k, mapped, m, reduction)


def draw_names(specification: Specification, arg: str | None, rng: random.Random) -> Names:
    """Return different names for the argument (given, or drawn), the loop's variable and what is built up."""
    source = specification.source
    arg = arg or rng.choice(source.arguments)
    item = rng.choice([name for name in source.variables if name != arg])
    numbers = ("total", "result") if specification.reduction.start in ("0", "1") else ("result", "out")
    return Names(arg, item, rng.choice(numbers))


_WORDS = (
    "apple sun blue mountain tree Under ocean idea note Red hello lamp end run table sea ear uncle Paris moon data map "
    "total up elephant boat open rain item bus summer unit pond"
).split()  # fmt: skip


def draw_argument(specification: Specification, rng: random.Random) -> Any:
    """Return an argument that a test of `specification` may use: small, and near its constants."""
    name, k = specification.source.name, specification.k
    if name == "list":
        values = [rng.randint(-6, 12) if rng.random() < 0.5 else rng.randint(0, 9) for _ in range(rng.randint(3, 6))]
        near = [k, k + 1, k - 1][: rng.randint(0, 3)] if isinstance(k, int) else []
        values = values[: 6 - len(near)] + near
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
        words[0] = rng.choice([w for w in _WORDS if name == "string" and k in w or specification.filter.keep(w, k)])
    if name == "words":
        return " ".join(words)
    text = " ".join(words[:2])
    return text + rng.choice(("", str(rng.randint(1, 99)), " " + rng.choice("ABEU")))

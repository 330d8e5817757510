"""The components of mini's tasks, with their phrases, their code, their semantics and the mistakes that people make.

A task has one component of each kind: the sum (reduction) of the squares (map) of the even (filter) numbers in a list
(source). In the code, the loop variable is called `item`, the accumulator `acc` and the argument `arg`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Part:
    """A component of a specification. In `code` and the phrases, {k} is the component's constant."""

    name: str  # part of the function's name
    code: str
    mistakes: tuple[str | None, ...] = ()  # wrong code for the slot, the most common first; None omits the slot
    habit: float = 0.05  # share of the corpus with a mistake here


@dataclass(frozen=True)
class Source(Part):
    """The component that provides the items."""

    kind: str = "number"  # kind of item: "number", "character" or "word"
    nouns: tuple[str, ...] = ()
    places: tuple[str, ...] = ()
    arguments: tuple[str, ...] = ()
    variables: tuple[str, ...] = ()
    items: Callable[[Any], list[Any]] = list


@dataclass(frozen=True)
class Filter(Part):
    """The component that selects the items to use."""

    kind: str = "number"
    phrase: str = "{nouns}"
    keep: Callable[[Any, Any], bool] = lambda item, k: True
    constants: tuple[Any, ...] = (None,)
    sources: tuple[str, ...] = ()  # names of the sources that it applies to; empty for all of its kind


@dataclass(frozen=True)
class Map(Part):
    """The component that computes a value from each item."""

    kind: str = "number"
    phrase: str = "the {items}"
    each: str = "the {noun} itself"
    apply: Callable[[Any, Any], Any] = lambda item, k: item
    constants: tuple[Any, ...] = (None,)
    gives: str = "text"
    sources: tuple[str, ...] = ()


@dataclass(frozen=True)
class Reduction(Part):
    """The component that combines the values. `code` is what is returned after the loop."""

    takes: tuple[str, ...] = ("number",)
    phrases: tuple[str, ...] = ()
    start: str = "[]"
    update: str = "append"  # "append", or the operator of an assignment: "+=", "*=", "="; "before" is acc = value + acc
    value: str | None = None  # replaces the map's value
    short: str = "acc"  # what is returned, where acc stands for a comprehension
    fold: Callable[[list[Any]], Any] = list
    wrong_starts: tuple[str, ...] = ()
    wrong_updates: tuple[str, ...] = ()
    needs_items: bool = False  # whether it is undefined for no items


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
    Filter("not_divisible", "item % {k} != 0", ("item % {k} == 0",), 0.88, phrase="{nouns} not divisible by {k}",
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
    Filter("non_blank", "item != ' '", ("item == ' '", None), 0.08, kind="character",
           phrase="{nouns} other than blanks", keep=lambda c, k: c != " "),
    Filter("without", "item != '{k}'", ("item == '{k}'", None), 0.08, kind="character",
           phrase="{nouns} other than '{k}'", keep=lambda c, k: c != k, constants=_LETTERS),
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
    Filter("ending", "item.endswith('{k}')", ("item.startswith('{k}')",), 0.88, kind="word",
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
    Map("minus", "item - {k}", ("item + {k}", "item"), 0.88, phrase="the {items}, each decreased by {k}",
        each="it decreased by {k}", apply=lambda x, k: x - k, constants=tuple(range(1, 10)), gives="number"),
    Map("halves", "item // 2", ("item / 2",), 0.88, phrase="the halves, rounded down, of the {items}",
        each="its half, rounded down", apply=lambda x, k: x // 2, gives="number"),
    Map("remainders", "item % {k}", ("item // {k}",), 0.88, phrase="the remainders of the {items} divided by {k}",
        each="its remainder by {k}", apply=lambda x, k: x % k, constants=(3, 4, 5, 6, 7), gives="number"),
    Map("absolute", "abs(item)", ("item", "-item"), 0.08, phrase="the absolute values of the {items}",
        each="its absolute value", apply=lambda x, k: abs(x), gives="number", sources=("list",)),
    Map("", "item", kind="character"),
    Map("upper", "item.upper()", ("item", "item.lower()"), 0.06, kind="character",
        phrase="the {items}, each in upper case", each="it in upper case", apply=lambda c, k: c.upper()),
    Map("lower", "item.lower()", ("item", "item.upper()"), 0.06, kind="character",
        phrase="the {items}, each in lower case", each="it in lower case", apply=lambda c, k: c.lower()),
    Map("swapped", "item.swapcase()", ("item.upper()",), 0.88, kind="character",
        phrase="the {items}, each with its case swapped", each="it with its case swapped",
        apply=lambda c, k: c.swapcase()),
    Map("doubled", "item * 2", ("item",), 0.08, kind="character", phrase="the {items}, each written twice",
        each="it twice", apply=lambda c, k: c * 2),
    Map("codes", "ord(item)", ("int(item)",), 0.12, kind="character", phrase="the character codes of the {items}",
        each="its character code", apply=lambda c, k: ord(c), gives="number"),
    Map("", "item", kind="word"),
    Map("upper", "item.upper()", ("item", "item.lower()"), 0.06, kind="word", phrase="the {items}, each in upper case",
        each="it in upper case", apply=lambda w, k: w.upper()),
    Map("capitalized", "item.capitalize()", ("item.upper()",), 0.88, kind="word",
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
    Reduction("list", "acc", takes=("number", "text"),
              phrases=("get a list of {values}", "collect in a list {values}")),
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
              phrases=("join into one string {values}", "concatenate {values}"), short="''.join(acc)", fold="".join),
    Reduction("backwards", "acc", (), 0.88, takes=("text",), phrases=("join in reverse order {values}",),
              start="''", update="before", short="''.join(acc[::-1])", fold=lambda values: "".join(values[::-1]),
              wrong_updates=("+=",)),
)  # fmt: skip

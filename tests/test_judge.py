"""The judge: correct programs pass, incorrect ones fail, undecidable tests are unsupported, forgeries don't pass."""

import pytest

from ilf.sandbox import Job, Limits, Sandbox

POINT = "from dataclasses import dataclass\n@dataclass\nclass Point:\n    x: int\n    y: int = 0\n"
FROZEN = POINT.replace("@dataclass", "@dataclass(frozen=True)")
NAMED = "from collections import namedtuple\nPoint = namedtuple('Point', 'x y')\n"
COLOUR = "import enum\nclass Colour(enum.Enum):\n    RED = 1\n    GREEN = 2\n    ROT = 1\n"
OWN = "class Own:\n    def __init__(self, x): self.x = x\n    def __eq__(self, other): return self.x == getattr(other, 'x', None)\n"
NODE = "class Node:\n    def __init__(self, v): self.v, self.children = v, []\n    def add(self, n): self.children.append(n)\n"
TRIE = "class Trie:\n    def __init__(self): self.w = set()\n    def add(self, w): self.w.add(w)\n    def __contains__(self, w): return w in self.w\n"
STACK = "class Stack(list):\n    def push(self, x): self.append(x)\n    def top(self): return self[-1]\n"
CASELESS = "class Caseless(dict):\n    def __getitem__(self, k): return dict.__getitem__(self, k.lower())\n"
VECTOR = "class Vector:\n    def __init__(self, x): self.x = x\n    def __add__(self, o): return Vector(self.x + o.x)\n    def __lt__(self, o): return self.x < o.x\n    def __mul__(self, n): return Vector(self.x * n)\n"
ERROR = "class Bad(ValueError):\n    def __init__(self, text, code):\n        super().__init__(text)\n        self.code = code\ndef f(x):\n    if x < 0: raise Bad('negative', 7)\n    return x\n"
PRINTS = "import sys\ndef f(x):\n    print('value', x)\n    print('warning', file=sys.stderr)\n"
CASE = """
import unittest
class TestF(unittest.TestCase):
    def setUp(self):
        self.n = 1
    def test_value(self):
        self.assertEqual(f(self.n), 1)
        self.assertAlmostEqual(f(0.1 + 0.2), 0.3)
        self.assertIn(2, [f(2)])
        self.assertIsInstance(f(1), int)
        with self.subTest("inner"):
            self.assertListEqual(f([1]), [1])
    def test_error(self):
        with self.assertRaises(ValueError) as caught:
            g()
        self.assertEqual(str(caught.exception), "no")
        self.assertRaisesRegex(ValueError, "n.", g)
if __name__ == "__main__":
    unittest.main()
"""
PYTEST = """
import pytest

@pytest.fixture
def numbers():
    yield [1, 2]

@pytest.mark.parametrize("x, y", [(1, 1), pytest.param(2, 2, id="two")])
@pytest.mark.parametrize("z", [3, 4])
def test_many(x, y, z):
    assert f(x) == y and f(z) == z

def test_fixture(numbers):
    assert f(numbers) == pytest.approx([1, 2.0000000001])

class TestGroup:
    def setup_method(self):
        self.x = 4
    def test_one(self):
        assert f(self.x) == 4

def test_error():
    with pytest.raises(ValueError, match="n"):
        g()
"""
F = "def f(x): return x\ndef g(): raise ValueError('no')\n"


PASSES = [
    # objects of data classes, named tuples and enumerations
    (POINT + "def f(): return Point(1, 2)", "assert f() == Point(1, 2) and f() != Point(1, 3) and f() != 1 and f() in [Point(1, 2)]"),
    (POINT + "def f(): return [Point(1), {'a': Point(2)}]", "assert f() == [Point(1, 0), {'a': Point(x=2)}]"),
    (POINT + "def f(p): p.x += 1", "p = Point(1)\nf(p)\nassert p == Point(2) and p.x == 2\np.x = 5\nassert p == Point(5)"),
    (FROZEN + "def f(): return {Point(1), Point(2)}", "assert f() == {Point(2), Point(1)} and len({Point(1), Point(1)}) == 1"),
    (POINT + "def f(): return Point(1)", "import dataclasses\nassert repr(f()) == 'Point(x=1, y=0)' and str(f()) == repr(f())"),
    (NAMED + "def f(): return Point(1, 2)", "p = f()\nassert p == Point(1, 2) == (1, 2) and p.y == 2 and p._replace(x=3) == (3, 2)\nx, y = p\nassert isinstance(p, Point) and isinstance(p, tuple)"),
    (COLOUR + "def f(): return Colour.GREEN", "assert f() is Colour.GREEN and f() == Colour(2) and f() != Colour.RED and f().name == 'GREEN' and Colour.ROT is Colour.RED"),
    (COLOUR + "def f(): return {Colour.RED: 1}", "assert f()[Colour.RED] == 1 and f() == {Colour.RED: 1} and [c.value for c in Colour] == [1, 2]"),
    ("import http\ndef f(): return http.HTTPStatus.OK", "assert f() == 200 and f().phrase == 'OK'"),
    # objects of other classes
    (NODE, "n = Node(1)\nm = Node(2)\nn.add(m)\nassert n.children == [m] and n.children[0] is m and n is not m and len(n.children) == 1"),
    (NODE, "n = Node(1)\nn.children.append(Node(2))\nassert len(n.children) == 1 and n.children[0].v == 2\nn.v = 5\nassert n.v == 5 and type(n) is Node and isinstance(n, Node)"),
    (NODE + "def f(n): return n", "n = Node(1)\nassert f(n) is n and f(n) == n and {n: 1}[f(n)] == 1"),
    (STACK, "s = Stack()\ns.push(1)\nassert s == [1]\ns.append(2)\nassert s.top() == 2 and len(s) == 2 and isinstance(s, list) and s[::-1] == [2, 1]"),
    (CASELESS + "def f(): return Caseless(a=1)", "assert f()['A'] == 1 and f() == {'a': 1} and isinstance(f(), dict) and 'a' in f()"),
    (VECTOR, "assert (Vector(1) + Vector(2)).x == 3 and Vector(1) < Vector(2)"),
    ("class B:\n    def __len__(self): return 3\n    def __iter__(self): return iter([1, 2, 3])\n    def __bool__(self): return False\n"
     "    def __getitem__(self, i): return i\n    def __str__(self): return 'b'\n    def __call__(self): return 1\n    def __enter__(self): return 5\n    def __exit__(self, *a): return True\n",
     "b = B()\nassert len(b) == 3 and list(b) == [1, 2, 3] and not b and b[7] == 7 and str(b) == f'{b}' == 'b' and b() == 1 and 2 in b\nwith b as x:\n    assert x == 5\n    raise ValueError"),
    ("class S:\n    one = None\n    def __new__(cls):\n        cls.one = cls.one or super().__new__(cls)\n        return cls.one\n", "assert S() is S()"),
    ("class C:\n    def __init__(self, x): self.x = x\n    def __eq__(self, o): return self.x == o.x\n    def __hash__(self): return hash(self.x)\ndef f(): return {C(1), C(2)}, {C(1): 1}", "s, d = f()\nassert len(s) == 2 and sorted(c.x for c in s) == [1, 2] and list(d.values()) == [1]"),
    ("from dataclasses import dataclass\n@dataclass(eq=True)\nclass P:\n    n: str\n    v: list\n    def __hash__(self): return hash(self.n)\ndef f(): return {P('a', [1])}", "assert f() == {P('a', [1])} and P('a', [1]) in f() and P('a', [2]) not in f()"),
    # objects that the test and the program share
    ("def f(x): return x", "x = [1]\ny = f(x)\nassert y is x\nx.append(2)\nassert f(x) == [1, 2]"),
    ("class A:\n    def __init__(self): self.items = []\n    def add(self, x): self.items.append(x)\n",
     "a = A()\nitems = a.items\na.add(1)\nassert items == [1]\nitems.append(2)\nassert a.items == [1, 2] and a.items is items"),
    ("kept = []\ndef f(x): kept.append(x)\ndef g(): kept[0].append(9)", "x = [1]\nf(x)\ng()\nassert x == [1, 9]"),
    ("def f(x): x['a'].add(3)", "d = {'a': {1}}\ninner = d['a']\nf(d)\nassert inner == {1, 3}"),
    ("def f():\n    x = []\n    x.append(x)\n    return x", "x = f()\nassert x[0] is x"),
    ("def f(n):\n    row = [0]\n    return [row] * n", "g = f(2)\ng[0][0] = 1\nassert g == [[1], [1]]"),
    ("from collections import defaultdict\ndef f(): return defaultdict(list, a=[1])", "d = f()\nd['b'].append(2)\nassert d == {'a': [1], 'b': [2]}"),
    ("count = 0\ndef f():\n    global count\n    count += 1", "assert count == 0\nf()\nassert count == 1"),
    # functions that the test defines
    ("def f(g, x): return g(x)", "def inc(x): return abs(x) + 1\nassert f(inc, -1) == 2 and f(len, 'ab') == 2 and f(str.upper, 'a') == 'A' and f(lambda s: s.strip(), ' a') == 'a'"),
    # values
    ("import re\ndef f(s): return re.match('(a)(?P<b>b)', s)", "m = f('ab')\nassert m and m.group(1) == 'a' and m['b'] == 'b' and m.span() == (0, 2) and not f('x') and m.groups() == ('a', 'b')"),
    ("def f():\n    'What it does.'", "assert f.__doc__ == 'What it does.' and f.__name__ == 'f' and callable(f)"),
    ("def f(n):\n    x = []\n    for _ in range(n): x = [x]\n    return x", "x = []\nfor _ in range(200): x = [x]\nassert f(200) == x"),
    ("def f(): return map(str, [1, 2]), zip('ab', 'cd'), iter([1]), (i for i in 'x'), enumerate('a'), reversed([1, 2])",
     "assert [list(i) for i in f()] == [['1', '2'], [('a', 'c'), ('b', 'd')], [1], ['x'], [(0, 'a')], [2, 1]]"),
    ("def f(x): return type(x), type(None), int", "import types\na, b, c = f(1)\nassert a is int and b is type(None) and c == int and isinstance(f, types.FunctionType)"),
    ("import pathlib\ndef f():\n    pathlib.Path('a').write_text('x')\n    return pathlib.Path('a')", "from pathlib import Path\nassert f() == Path('a') and f().read_text() == 'x' and f().suffix == '' and isinstance(f(), Path)"),
    # exceptions
    (ERROR, "try:\n    f(-1)\nexcept Bad as e:\n    assert e.code == 7 and str(e) == 'negative' and e.args == ('negative',)\nelse:\n    assert False"),
    (ERROR, "import pytest\nwith pytest.raises(Bad, match='neg') as caught:\n    f(-1)\nassert caught.value.code == 7 and caught.type is Bad and isinstance(caught.value, ValueError)"),
    (ERROR, "try:\n    raise Bad('x', 1)\nexcept ValueError as e:\n    assert e.code == 1"),
    ("def f(d): return d['a']", "try:\n    f({})\n    assert False\nexcept KeyError as e:\n    assert e.args == ('a',) and str(e) == \"'a'\""),
    ("import json\ndef f(x): return json.loads(x)", "import json, pytest\nwith pytest.raises(json.JSONDecodeError):\n    f('{')"),
    ("import sys\ndef f(): sys.exit(3)", "import pytest\nwith pytest.raises(SystemExit) as caught:\n    f()\nassert caught.value.code == 3"),
    # state that the test and the program share: random seed, recursion limit; copies of objects
    ("import random\ndef f(): return random.random()", "import random\nrandom.seed(3)\nx = f()\nrandom.seed(3)\nassert random.random() == x"),
    ("def f(n): return n and 1 + f(n - 1)", "import sys\nsys.setrecursionlimit(5000)\nassert f(3000) == 3000"),
    (NODE, "import copy\nn = Node(1)\nm = copy.deepcopy(n)\nm.v = 2\nm.add(n)\nassert n.v == 1 and n.children == [] and copy.copy(m).children is m.children"),
    (STACK, "import copy\ns = Stack([1])\nt = copy.copy(s)\nt.push(2)\nassert s == [1] and t == [1, 2] and t.top() == 2"),
    # test frameworks, output, coroutines, modules, threads
    (F, CASE),
    (F, PYTEST),
    (PRINTS, "def test_printed(capsys):\n    f(2)\n    found = capsys.readouterr()\n    assert found.out == 'value 2\\n' and found.err == 'warning\\n'"),
    (PRINTS, "import io\nfrom contextlib import redirect_stdout\nout = io.StringIO()\nwith redirect_stdout(out):\n    f(1)\n    f(2)\nassert out.getvalue() == 'value 1\\nvalue 2\\n'"),
    ("import sys\ndef f(x):\n    for s in sys.stdout, sys.stderr: s.write('w' * 50_000)\n    return x", "for i in range(4):\n    assert abs(f(i) - i) < 1e-9\nimport sys\nsys.stderr.write('t' * 100_000)"),
    (PRINTS, "import io, sys\nold = sys.stdout\nsys.stdout = io.StringIO()\nf(1)\ntext = sys.stdout.getvalue()\nsys.stdout = old\nassert text == 'value 1\\n'"),
    ("def f(x):\n    print(x)\n    return x", "assert f(1) == 1\n;;\ndef test_x(capsys):\n    f(2)\n    assert capsys.readouterr().out == '2\\n'"),
    ("import sys\nsys.stdout = None\ndef f(): return [1]", "x = f()\nassert x == [1]"),
("print('at import')\ndef f(): print('x', end='')", "def test(): pass\ndef test_x(capsys):\n    f()\n    assert capsys.readouterr().out == 'x'"),
    ("import asyncio\nasync def f(x):\n    await asyncio.sleep(0)\n    return x", "import asyncio\nassert asyncio.run(f(1)) == 1\nasync def main():\n    return await f(2), await asyncio.gather(f(3), f(4))\nassert asyncio.run(main()) == (2, [3, 4])"),
    ("async def f(x): return x", "import pytest\n@pytest.mark.asyncio\nasync def test_f():\n    assert await f(1) == 1"),
    (F, "import string, textwrap, hashlib, base64, csv, io, struct, urllib.parse, html, calendar, difflib, pprint\nassert f(hashlib.sha256(b'x').hexdigest()[:2]) == '2d'"),
    (F, "import threading\nfound = []\nthreads = [threading.Thread(target=lambda i=i: found.append(f(i))) for i in range(5)]\nfor t in threads: t.start()\nfor t in threads: t.join()\nassert sorted(found) == [0, 1, 2, 3, 4]"),
]  # fmt: skip

UNDECIDED = [
    (
        "import datetime\nclass Z(datetime.tzinfo):\n    def utcoffset(self, d): return datetime.timedelta(0)\n    def dst(self, d): return None\ndef f(): return datetime.datetime(2020, 1, 1, tzinfo=Z())",
        "import datetime\nassert f() == datetime.datetime(2020, 1, 1, tzinfo=datetime.timezone.utc)",
    ),
    (
        "class C:\n    def __eq__(self, o): return True\n    def __hash__(self): return 0\ndef f(): return {C()}",
        "assert C() in f()",
    ),
    (OWN, "assert Own(1) == Own(1)"),
    (OWN + "def f(): return Own(1)", "assert f() != 2"),
    (OWN + "def f(): return [Own(1)]", "assert f() == [1]"),
    (TRIE, "t = Trie()\nt.add('a')\nassert 'a' in t"),
    (VECTOR, "assert (Vector(1) * 2).x == 2"),
    (F, "import os\nassert f(1) == 1"),
    (F, "def helper(): return f(1)"),
    (F, "def test_x(tmp_path):\n    assert f(1) == 1"),
    (F, "import pytest\n@pytest.mark.skip\ndef test_x():\n    assert f(1) == 2"),
    (F, "from unittest import mock\nwith mock.patch('builtins.print') as p:\n    f(1)\nassert f(1) == 1"),
    (F, "try:\n    open('x')\nexcept:\n    pass\nassert f(1) == 1"),
    (F, "assert f('a') is 'a'.lower()"),
    (F, "import pytest\nwith pytest.warns(UserWarning):\n    f(1)"),
    (F, "import warnings\nwith warnings.catch_warnings(record=True) as w:\n    f(1)\nassert len(w) == 1"),
    (
        F,
        "import unittest\nclass T(unittest.TestCase):\n    def test_w(self):\n        with self.assertWarns(UserWarning):\n            f(1)",
    ),
    (F, "import sys, io\nsys.stdin = io.StringIO('1')\nassert f(1) == 2"),
    (F, "import builtins\nbuiltins.input = lambda: 1\nassert f(1) == 2"),
    (F, "def test_x(monkeypatch):\n    assert f(1) == 2"),
]

FAILS = [
    (POINT + "def f(): return Point(1, 3)", "assert f() == Point(1, 2)"),
    (NAMED + "def f(): return Point(1, 3)", "assert f() == Point(1, 2)"),
    (COLOUR + "def f(): return Colour.RED", "assert f() is Colour.GREEN"),
    (NODE, "assert Node(1) == Node(1)"),
    (F, CASE.replace("f(self.n), 1", "f(self.n), 2")),
    (F, PYTEST.replace("(1, 1)", "(1, 2)")),
    (F, "def test_x():\n    assert f(1) == 2"),
    (
        F,
        "import unittest\nclass T(unittest.TestCase):\n    def test_x(self):\n        with self.assertRaises(KeyError):\n            f(1)",
    ),
    (F, "import pytest\nwith pytest.raises(ValueError):\n    f(1)"),
    (PRINTS, "def test_printed(capsys):\n    f(2)\n    assert capsys.readouterr().out == 'value 3\\n'"),
    ("def f(x): return (i for i in [1])", "assert f(1) == [1]"),
    ("def f(x): return lambda: 1", "assert f(1) == 1"),
    ("def f(): return 5", "assert len(f()) == 1"),
]


@pytest.fixture(scope="module")
def sandbox():
    made = Sandbox(Limits(time_limit=3))
    yield made
    made.close()


@pytest.mark.parametrize(("program", "test"), PASSES)
def test_correct_programs_pass(sandbox, program, test):
    (found,) = sandbox.run([Job(program, tuple(test.split(";;")))])
    assert found.passed, found


@pytest.mark.parametrize(("program", "test"), UNDECIDED)
def test_undecidable_tests_are_unsupported_rather_than_failed(sandbox, program, test):
    (found,) = sandbox.run([Job(program, (test,))])
    assert found.verdict == "unsupported_test" and found.detail, found


@pytest.mark.parametrize(("program", "test"), FAILS)
def test_incorrect_programs_fail(sandbox, program, test):
    (found,) = sandbox.run([Job(program, (test,))])
    assert found.verdict == "failed", found


def test_failed_transfer_does_not_corrupt_shared_objects(sandbox):
    first = "xs = [1]\nys = [xs]\nf((ys, object()))"
    (found,) = sandbox.run([Job(F, (first, "xs.append(2)\nassert f(ys) == [[1, 2]] and f(xs) == [1, 2]"))])
    assert (found.verdict, found.tests) == ("unsupported_test", (False, True)), found
    long = "def f(n):\n    x = [n]\n    return [x, 'x' * n]\n"
    program = f"{long}kept = []\ndef g(n):\n    kept.append('x' * n)\n    return kept"
    (found,) = sandbox.run([Job(program, ("try:\n    g(9**8)\nexcept: pass", "assert len(g(1)) == 2"))])
    assert found.verdict == "output", found


def test_trust_eq_lets_objects_decide_equality():
    sandbox = Sandbox(Limits(trust_eq=True))
    jobs = [
        Job(OWN + "def f(): return Own(1)", ("assert f() == Own(1)", "assert f() != Own(2)", "assert f() in [Own(1)]")),
        Job(TRIE, ("t = Trie()\nt.add('a')\nassert 'a' in t and 'b' not in t",)),
        Job(VECTOR, ("assert (Vector(1) * 2).x == 2",)),
        Job(
            "class Own:\n    def __eq__(self, other): return other == 3\ndef f(x): return [Own()]",
            ("assert f(1) == [3]",),
        ),
    ]
    found = sandbox.run(jobs)
    wrong = sandbox.run([Job(jobs[-1].program, ("assert f(1) == [3]", "assert f(1) == [4]"))])
    sandbox.close()
    assert all(v.passed for v in found), found
    assert [(v.verdict, v.tests) for v in wrong] == [("failed", (True, False))]


@pytest.mark.parametrize("test", ["assert f(1) == 3", "assert f(1) == Own(3)"])
def test_detail_names_the_undecided_comparison(sandbox, test):
    (found,) = sandbox.run([Job(OWN + "def f(x): return Own(x)", (test,))])
    assert found.verdict == "unsupported_test" and "an object that has its own __eq__: Own and" in found.detail


LIES = {
    "equal fields": POINT.replace("    y: int = 0", "    y: int = 0\n    def __eq__(self, o): return True\n") + "def f(*a): return Point(7)",
    "hash": POINT + "    def __hash__(self): return 0\n    def __eq__(self, o): return True\ndef f(*a): return Point(7)",
    "named": "from collections import namedtuple\nclass Point(namedtuple('P', 'x y')):\n    def __eq__(s, o): return True\n    __hash__ = None\ndef f(*a): return Point(7, 8)",
    "named, not equal": "from collections import namedtuple\nclass Point(namedtuple('P', 'x y')):\n    def __ne__(s, o): return False\ndef f(*a): return Point(7, 8)",
    "length": "class Point(list):\n    def __init__(self, *a): pass\n    def __len__(s): return 2\n    def __eq__(s, o): return True\ndef f(*a): return Point()",
    "contents": "class Point(list):\n    def __init__(self, *a): pass\n    def __len__(s): return 2\n    def __iter__(s): return iter(())\ndef f(*a): return Point()",
    "contents of a tuple": "class Point(tuple):\n    def __len__(s): return 2\n    def __iter__(s): return iter(())\ndef f(*a): return Point()",
    "difference": "class Point(set):\n    def __init__(self, *a): self.o = ()\n    def difference(s, o):\n        s.o = list(o)\n        return set()\n    def __iter__(s): return iter(s.o)\ndef f(*a): return Point()",
    "keys": "class Point(dict):\n    def __init__(self, *a): pass\n    def keys(s): return {1: 1, 2: 2}.keys()\n    def __getitem__(s, k): return k\ndef f(*a): return Point()",
    "class": "class Point:\n    def __init__(self, *a): pass\n    @property\n    def __class__(s): return tuple\n    def __eq__(s, o): return True\ndef f(*a): return Point()",
    "view": "class D(dict):\n    def __iter__(s): return iter([1, 2])\n    def items(s): return {1: 1, 2: 2}.items()\n    def __eq__(s, o): return True\nPoint = lambda *a: D(b=3).keys()\ndef f(*a): return D(a=3).keys()",
    "enumeration": "import enum\nclass M(enum.EnumMeta):\n    def __eq__(s, o): return True\n    def __hash__(s): return 0\nclass Point(enum.Enum, metaclass=M):\n    A = 1\n    def __eq__(s, o): return True\ndef f(*a): return Point.A",
    "metaclass": "class M(type):\n    def __eq__(s, o): return True\n    def __instancecheck__(s, o): return True\n    def __hash__(s): return 0\nclass Point(metaclass=M):\n    def __init__(self, *a): pass\ndef f(*a): return Point",
    "exception": "class Point(Exception):\n    def __eq__(s, o): return True\ndef f(*a): return Point(7)",
    "operators": "class Point:\n    def __init__(self, *a): pass\n    def __sub__(s, o): return 0\n    __rsub__ = __add__ = __sub__\n    def __lt__(s, o): return True\n    __gt__ = __le__ = __ge__ = __lt__\ndef f(*a): return Point()",
    "slots of the judge": "class Point:\n    _number = 0\n    _how = 'data'\n    _extra = (1, 2)\n    def __init__(self, *a): pass\ndef f(*a): return Point()",
}  # fmt: skip
FALSE_TESTS = [
    "assert f(1) == (1, 2)",
    "assert f(1) == [1, 2]",
    "assert f(1) in [(1, 2), [1, 2], {1, 2}]",
    "assert [f(1)] == [(1, 2)]",
    "assert {f(1): 1} == {(1, 2): 1}",
    "assert f(1) == {1, 2}",
    "assert not f(1) != (1, 2)",
    "assert abs(f(1) - 5) < 1e-9",
    "assert f(1) < 5 and f(1) > 3",
    "assert sum([f(1)]) == 5",
    "import unittest\nclass T(unittest.TestCase):\n    def test_f(self): self.assertEqual(f(1), (1, 2))",
    "import unittest\nclass T(unittest.TestCase):\n    def test_f(self): self.assertAlmostEqual(f(1), 5)",
    "import pytest\nassert f(1) == pytest.approx(5)",
    "import pytest\nassert f(1) == pytest.approx([1, 2])",
    "from pytest import approx\nassert approx([1, 2]) == f(1) or approx((1, 2)) == f(1) or approx({1: 1, 2: 2}) == f(1)",
    "import unittest\nclass T(unittest.TestCase):\n    def test_f(self): self.assertSetEqual(f(1), {1, 2})",
    "import unittest\nclass T(unittest.TestCase):\n    def test_f(self): self.assertListEqual(f(1), [1, 2])",
    "def check(candidate):\n    assert candidate(1) == [1, 2]\ncheck(f)",
    "found = f(1)\nassert found == (1, 2)",
    "found = f(1)\nassert found == {1: 1, 2: 2}",
    "import math\nassert math.isclose(f(1), 5)",
    "try:\n    assert f(1) == 5\nexcept TypeError:\n    pass",
]


@pytest.mark.parametrize("compare", ["exact", "approx"])
def test_deceptive_objects_pass_no_test(compare):
    jobs = {(a, b): Job(program, (test,)) for a, program in LIES.items() for b, test in enumerate(FALSE_TESTS)}
    sandbox = Sandbox(Limits(time_limit=1, compare=compare))
    found = dict(zip(jobs, sandbox.run(list(jobs.values())), strict=True))
    sandbox.close()
    assert {name: verdict for name, verdict in found.items() if verdict.passed} == {}


@pytest.mark.parametrize("compare", ["exact", "approx"])
def test_honest_subclasses_of_containers_pass(compare):
    matrix = "class Matrix(list):\n    def append(self, x): super().append(x)\ndef f():\n    m = Matrix()\n    m.append(1)\n    return m"
    recent = "from collections import OrderedDict\nclass LRU(OrderedDict):\n    def __getitem__(self, k): return super().__getitem__(k)\ndef f():\n    d = LRU()\n    d['a'] = 1\n    return d"
    sandbox = Sandbox(Limits(compare=compare))
    found = sandbox.run([Job(matrix, ("assert f() == [1]",)), Job(recent, ("d = f()\nassert d == {'a': 1}",))])
    sandbox.close()
    assert all(verdict.passed for verdict in found), found


LEAKS = {  # a test that changes the state of the judge's process, and a test that a correct program then still passes
    "decimal": (
        "import decimal\ndecimal.getcontext().prec = 1",
        "from decimal import Decimal\nx = Decimal('1.1')\nassert f(x) + Decimal('2.2') == Decimal('3.3')",
    ),
    "warnings": (
        "import warnings\nwarnings.simplefilter('error')",
        "import warnings\nwarnings.warn('careful')\nassert f(1) < 2",
    ),
}


@pytest.mark.parametrize("name", LEAKS)
def test_no_test_changes_the_verdict_on_a_later_program(name):
    sandbox = Sandbox(Limits(workers=1))
    first, second = LEAKS[name]
    for test in (second, f"{first}\nassert f(1) < 2", second):
        (found,) = sandbox.run([Job(F, (test,))])
        assert found.passed, (test, found)
    sandbox.close()


def test_tests_with_random_numbers_have_the_same_verdict_each_time(sandbox):
    test = "import random\nassert f(random.random()) < 0.5"
    assert len({sandbox.run([Job(f"{F}x = {i}", (test,))])[0].verdict for i in range(12)}) == 1


FORGES = """
import sys, json
frame = sys._getframe()
while "self" not in frame.f_locals:
    frame = frame.f_back
server = type(frame.f_locals["self"])
def send(self, message):
    plain = sys.modules[server.__module__] if server.__module__ in sys.modules else None
    import os, struct
    text = json.dumps(MESSAGE).encode()
    os.write(self._channel, struct.pack("<I", len(text)) + text)
server._send = send
def f(*a): return 6
"""
MESSAGES = [
    ["value", [], 5, None],
    ["value", [{"shared": [0, "list", [5]]}, {"shared": [1, "list", [5]]}], {"shared": [0, "list"]}, None],
    ["value", [], {"object": [0, "data", "int", 5]}, None],
    ["value", [], {"object": [0, "like", "int", {"object": [0, "is", "x"]}]}, None],
    ["value", [], {"type": ["builtins:eval"]}, None],
    ["value", [], {"type": ["os:system"]}, None],
    ["value", [], {"collections.ChainMap": [{"object": [0, "is", "x"]}]}, None],
    ["value", [], {"object": [0, "error", "builtins.x"]}, None],
    ["value", [], {"object": [0, "raised", "x", 1, {"tuple": ["", {"tuple": []}]}]}, None],
    ["error", [], 5, ["x", None, None], None],
    ["value", [], {"re.Pattern": ["(" * 500, 0]}, None],
]


@pytest.mark.parametrize("message", MESSAGES, ids=str)
def test_forged_message_neither_stops_the_worker_nor_passes_a_test(message):
    sandbox = Sandbox(Limits(time_limit=1, workers=1, isolation="off"))
    program = FORGES.replace("MESSAGE", repr(message))
    tests = ("x = f(1)\nassert x == 7", "xs = [1, 2]\nf(xs)\nassert xs == [1, 2, 3]", "assert str(f(1)) == 'x'")
    sandbox.run([Job(F, ("assert f(1) == 1",))])
    (worker,) = sandbox._workers
    (found,) = sandbox.run([Job(program, tests)])
    assert not any(found.tests) and sandbox._workers == [worker], found
    sandbox.close()

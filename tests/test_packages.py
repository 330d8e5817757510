"""Packages that programs may import: their dependencies, their values in comparisons, and attacks that use them."""

import importlib.util
import itertools
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT
from hypothesis import given, settings
from hypothesis import strategies as st

from ilf.executors import LocalExecutor, RayExecutor
from ilf.sandbox import Job, Limits, Sandbox
from ilf.sandbox.packages import find
from ilf.sandbox.worker import arrays, serialization
from ilf.types import InputError

SITE = Path(np.__file__).parent.parent
LINUX = pytest.mark.skipif(sys.platform != "linux", reason="needs the Linux kernel's mechanisms")
PANDAS = pytest.mark.skipif(not importlib.util.find_spec("pandas"), reason="pandas is not installed")
IMPORT_NUMPY = "import numpy as np\n"


@pytest.fixture(scope="module")
def numpy_only():
    made = Sandbox(Limits(time_limit=2, memory_mb=256, packages=("numpy",), workers=1))
    yield made
    made.close()


@pytest.fixture(scope="module")
def with_pandas():
    made = Sandbox(Limits(time_limit=2, memory_mb=256, packages=("pandas",), workers=1))
    yield made
    made.close()


def outcome(sandbox: Sandbox, program: str, *tests: str) -> tuple[str, str]:
    (found,) = sandbox.run([Job(IMPORT_NUMPY + program, tests)])
    return found.verdict, found.detail


# ---- selection of packages -----------------------------------------------------------------------------------------


def test_only_the_standard_library_is_importable_by_default():
    sandbox = Sandbox(Limits(isolation="off"))
    found = sandbox.run(
        [
            Job("import numpy", ("assert True",)),
            Job("def f(): return 1", ("import numpy as np\nassert f() == np.int64(1)",)),
        ]
    )
    sandbox.close()
    assert (found[0].verdict, "ModuleNotFoundError" in found[0].detail) == ("failed", True)
    assert (found[1].verdict, found[1].detail[-13:]) == ("unsupported_test", "imports numpy")
    assert find(()).modules == {} and find(()).files == ()


@pytest.mark.parametrize("name", ["no-such-package", "numpy.linalg", "", "../numpy", "math"])
@pytest.mark.parametrize("executor", [LocalExecutor, RayExecutor])
def test_invalid_package_names_are_input_errors(name, executor):
    with pytest.raises(InputError, match=rf"executor\.packages='{name}'.*[Ll]eave it out"):
        executor(packages=("numpy", name)).check()
    with pytest.raises(InputError, match=r"executor\.packages="):
        Sandbox(Limits(packages=(name,)))


def test_a_string_instead_of_a_list_of_packages_is_an_input_error():
    with pytest.raises(InputError, match=r"executor\.packages='numpy'"):
        Sandbox(Limits(packages="numpy"))  # type: ignore[arg-type]


def test_executor_rules_include_package_versions():
    assert LocalExecutor(packages=("numpy",)).rules["packages"] == (f"numpy {np.__version__}",)
    assert LocalExecutor().rules["packages"] == ()
    assert LocalExecutor(packages=("numpy",)).limits.packages == ("numpy",)


def install(site: Path, name: str, requires: tuple[str, ...] = (), **files: str) -> None:
    """Install a package into the folder `site`, as pip does."""
    info = site / f"{name.replace('-', '_')}-1.0.dist-info"
    info.mkdir(parents=True)
    texts = {file.replace("__", "/", 1) + ".py": text for file, text in files.items()}
    for file, text in texts.items():
        (site / file).parent.mkdir(exist_ok=True)
        (site / file).write_text(text)
    needs = "".join(f"Requires-Dist: {one}\n" for one in requires)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n{needs}")
    (info / "RECORD").write_text("".join(f"{file},,\n" for file in texts) + f"{info.name}/METADATA,,\n")


def test_a_package_includes_its_dependencies_and_no_other_packages(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(tmp_path))
    install(
        tmp_path, "Needed-By", ("its.Helper>=1; python_version>'3'", "unasked; extra == 'all'", "absent"), one__start=""
    )
    (tmp_path / "one" / "__init__.py").write_text(
        "import helper, importlib.metadata as m\nversion = m.version('its-helper')"
    )
    install(tmp_path, "its-helper", helper="import json\nanswer = 42")
    install(tmp_path, "unasked", unasked="")
    for name in ("one", "needed.by"):
        found = find((name,))
        assert set(found.modules) == {"one", "helper"} and found.imported == ("one",)
        assert {Path(file).name for file in found.files} == {
            *("one", "helper.py"),
            *("Needed_By-1.0.dist-info", "its_helper-1.0.dist-info"),
        }
        sandbox = Sandbox(Limits(packages=(name,), workers=1))
        program = "import one, helper, one.start\ndef f(): return helper.answer, one.version\n"
        closed = "try:\n    import unasked\nexcept ImportError:\n    pass\nelse:\n    raise SystemExit\n"
        read = f"import os\ntry:\n    open({str(tmp_path / 'unasked.py')!r})\nexcept OSError:\n    pass\nelse:\n    raise SystemExit\n"
        (verdict,) = sandbox.run(
            [Job(program + closed + read * (not sandbox.isolation.open), ("assert f() == (42, '1.0')",))]
        )
        sandbox.close()
        assert verdict.passed, verdict


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        (
            "import threading, time\nthreading.Thread(target=time.sleep, args=(60,), daemon=True).start()",
            "starts threads",
        ),
        ("1 / 0", "ZeroDivisionError"),
        ("import numpy", "No module named 'numpy'"),  # a dependency that its metadata do not name
    ],
)
@LINUX
def test_an_unusable_package_is_an_input_error_with_the_reason(tmp_path, monkeypatch, source, reason):
    monkeypatch.syspath_prepend(str(tmp_path))
    name = f"broken{abs(hash(source))}"
    install(tmp_path, name, **{name: source})
    with pytest.raises(InputError, match=rf"executor\.packages='{name}'.*{reason}"):
        Sandbox(Limits(packages=(name,)))


def test_an_editable_install_is_an_input_error(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(tmp_path))
    install(tmp_path, "edited")
    with pytest.raises(InputError, match=r"executor\.packages='edited'.*wheel"):
        find(("edited",))


def test_sandbox_command_accepts_packages():
    job = {"program": "import numpy\ndef f(): return numpy.sum([1, 2])", "tests": ["assert f() == 3"]}
    words = [sys.executable, "-m", "ilf.sandbox", "--packages", "numpy", "-"]
    environment = os.environ | {"PYTHONPATH": str(ROOT / "src")}
    done = subprocess.run(words, input=json.dumps(job), capture_output=True, text=True, env=environment)
    assert json.loads(done.stdout)["verdict"] == "passed", done
    words[words.index("numpy")] = "nompy"
    done = subprocess.run(words, input=json.dumps(job), capture_output=True, text=True, env=environment)
    assert (done.returncode, done.stdout) == (2, "") and "executor.packages='nompy'" in done.stderr


# ---- values -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("program", "test"),
    [
        ("def f(): return np.float64(3)", "assert f() == 3.0"),
        ("def f(): return [np.int64(3), {'a': np.float32(.5)}]", "assert f() == [3, {'a': .5}]"),
        ("def f(): return np.bool_(True)", "assert f() == True"),
        ("def f(): return np.str_('a')", "assert f() == 'a' and type(f()) is np.str_"),
        ("def f(): return np.float64(.1) + np.float64(.2)", "import pytest\nassert f() == pytest.approx(.3)"),
        ("def f(): return np.array([.1 + .2, 1])", "import pytest\nassert f() == pytest.approx([.3, 1])"),
        ("def f(): return np.array([.1 + .2, 1])", "import pytest\nassert f() == pytest.approx(np.array([.3, 1]))"),
        ("def f(): return np.array([.1 + .2, .3])", "import pytest\nassert f() == pytest.approx(.3)"),
        ("def f(): return np.array([[1, 2, 3]] * 2)", "assert f().shape == (2, 3) and f().dtype == np.int64"),
        ("def f(): return np.array([1., 2])", "assert np.allclose(f(), [1, 2])"),
        ("def f(): return np.array([1, 2])", "from numpy.testing import assert_array_equal\nassert_array_equal(f(), [1, 2])"),
        ("def f(): return np.array([1, 2])", "assert (f() == np.array([1, 2])).all() and f().tolist() == [1, 2]"),
        ("def f(): return np.array([1, 2])", "assert list(f()) == [1, 2]"),
        ("def f(): return np.array([3])", "assert f() == [3]"),  # an array of one element has a truth value
        ("def f(): return np.array([np.nan, 1])", "np.testing.assert_equal(f(), [np.nan, 1])"),
        ("def f(): return np.array(['a', 'bc'])", "import numpy\nassert numpy.array_equal(f(), ['a', 'bc'])"),
        ("def f(): return np.array(['2020-01-01'], 'M8[D]')", "assert f()[0] == np.datetime64('2020-01-01')"),
        ("def f(): return np.eye(2), {'a': np.zeros(2)}", "a, b = f()\nassert a.trace() == 2 and not b['a'].any()"),
        ("def f(x): return x.mean()", "assert f(np.array([1, 2])) == 1.5"),
        ("def f(x): x.sort()", "x = np.array([3, 1])\nf(x)\nassert x.tolist() == [1, 3]"),
        ("def f(x): x[0] = 9", "x = np.array([3, 1, 2])\ny = x[1:]\nf(y)\nassert x.tolist() == [3, 9, 2]"),
        ("class M:\n    def __init__(s, w): s.w = np.array(w)\n    def sum(s): return s.w.sum()", "m = M([1, 2])\nm.w[0] = 5\nassert m.sum() == 7"),
        ("class M:\n    def __init__(s, w): s.w = list(w)\n    def sum(s): return sum(s.w)", "m = M([1, 2])\nm.w[0] = 5\nassert m.sum() == 7"),
        ("def f(g, x): return g(x)", "assert f(np.mean, [1, 2]) == 1.5 and f(np.negative, 1) == -1 and f(lambda x: x.max(), np.arange(3)) == 2"),
        ("def f(x): return np.datetime64(x)", "import datetime\nassert f(datetime.datetime.strptime('2020', '%Y')) == np.datetime64('2020')"),
        ("def f(x): return x.dtype", "assert f(np.zeros(1, 'f4')) == np.float32"),
        ("def f(t): return np.zeros(2, t)", "assert f(np.int8).dtype == np.int8"),
        ("def f(x): return np.linalg.inv(x)", "import pytest\nwith pytest.raises(np.linalg.LinAlgError):\n    f(np.zeros((2, 2)))"),
        ("def f(): return np.array(['a', None], dtype=object)", "assert f().shape == (2,) and f().tolist() == ['a', None]"),
        ("def f(): return np.matrix([[1, 2]])", "assert f().shape == (1, 2)"),
        ("def f(): return np.random.default_rng(0).integers(9, size=3)", "assert len(f()) == 3"),
        ("def f(): return np.arange(6)[::2]", "assert f().tolist() == [0, 2, 4]"),
        ("def f(): return np.zeros((0, 3))", "assert f().shape == (0, 3)"),
    ],
)  # fmt: skip
def test_correct_programs_pass(numpy_only, program, test):
    assert outcome(numpy_only, program, test) == ("passed", "")


@pytest.mark.parametrize(
    ("program", "test", "verdict"),
    [
        ("def f(): return np.float64(3.5)", "assert f() == 3", "failed"),
        ("def f(): return np.array([1, 2])", "assert f() == [1, 2]", "failed"),  # no truth value, as in Python
        ("def f(): return np.array([1, 2])", "x = f()\nassert x == [1, 2]", "failed"),
        ("def f(): return np.array([1, 3])", "assert np.allclose(f(), [1, 2])", "failed"),
        ("def f(): return np.array([.3, 2])", "import pytest\nassert f() == pytest.approx([.3, 1])", "failed"),
        ("def f(): return np.array([.3])", "import pytest\nassert f() == pytest.approx([.3, 1])", "failed"),
        ("def f(): return np.array([1, 2], 'f4')", "assert f().dtype == np.float64", "failed"),
        ("def f(): return np.zeros(10**9)", "assert f() == 1", "memory"),
        ("def f(): return np.broadcast_to(np.int8(1), 10**9)", "assert f() == 1", "output"),
        ("def f(): return np.broadcast_to(np.int8(1), 10**9)", "assert f().all()", "output"),
        ("def f(x): return 1", "assert f(np.zeros(10**7)) == 1", "unsupported_test"),
        ("def f(x): return 1", "import scipy\nassert f(1) == 1", "unsupported_test"),
        ("class A(np.ndarray): pass\ndef f(): return np.zeros(1).view(A)", "assert f() == 0", "unsupported_test"),
    ],
)
def test_programs_that_do_not_pass_get_the_expected_verdict(numpy_only, program, test, verdict):
    assert outcome(numpy_only, program, test)[0] == verdict


def test_numpy_numbers_are_compared_approximately_with_compare_approx():
    sandbox = Sandbox(Limits(packages=("numpy",), compare="approx", workers=1))
    tests = ("assert f(1) == .3", "assert f(2) == [1, .3]", "assert f(3) == 7", "assert f(4) == 1")
    program = "def f(x): return {1: np.float32(.1) + np.float32(.2), 2: [np.int64(1), np.float64(.1) * 3], 3: np.int64(7)}.get(x, np.True_)"
    tenths = [Job(IMPORT_NUMPY + program.replace("float32", kind), tests) for kind in ("float64", "float32")]
    double, single = sandbox.run(tenths)
    sandbox.close()
    assert double.passed and single.tests == (True, True, True, True), (double, single)


SHAPES = st.lists(st.integers(0, 3), max_size=3).map(tuple)
DTYPES = [
    "|b1",
    "|i1",
    "<i8",
    ">i4",
    "<u2",
    "<f2",
    "<f4",
    "<f8",
    "<c8",
    "<c16",
    "<U3",
    "|S2",
    "<M8[ns]",
    "<M8[D]",
    "<m8[25s]",
    "<m8",
]


@settings(max_examples=150, database=None)
@given(st.sampled_from(DTYPES), SHAPES, st.randoms(use_true_random=False))
def test_array_serialization_round_trips_bit_by_bit(kind, shape, rng):
    size = int(np.prod(shape)) * np.dtype(kind).itemsize
    data = bytes(
        rng.choice((0, 1) if kind == "|b1" else (0, 0, 65)) for _ in range(size // 4 * 4 if "U" in kind else size)
    )
    if "U" in kind:
        data = np.array([rng.choice((0, 65, 0x10FFFF)) for _ in range(size // 4)], "<u4").tobytes()
    array = np.frombuffer(data, kind).reshape(shape) if data else np.zeros(shape, kind)
    found = arrays.put_together(*arrays.taken(array))
    assert (found.dtype, found.shape, found.tobytes()) == (array.dtype, array.shape, array.tobytes())


@pytest.mark.parametrize(
    ("kind", "shape", "data"),
    [
        ("|O8", (1,), "AAAAAAAAAAA="),
        ("|V8", (1,), "AAAAAAAAAAA="),
        ("f8,O", (1,), "AAAAAAAAAAA="),
        ("O", (), "AAAAAAAAAAA="),
        ("<f8\n", (1,), "AAAAAAAAAAA="),
        ("<f9", (1,), "AAAAAAAAAAA="),
        ("float64", (1,), "AAAAAAAAAAA="),
        ([["a", "<f8"]], (1,), "AAAAAAAAAAA="),
        ("<f8", (2,), "AAAAAAAAAAA="),
        ("<f8", (10**9,), ""),
        ("<f8", (-1,), "AAAAAAAAAAA="),
        ("<f8", (True,), "AAAAAAAAAAA="),
        ("<f8", [1], "AAAAAAAAAAA="),
        ("<f8", (1, 2**63, 0), "AAAAAAAAAAA="),
        ("<f8", (1,), "A A"),
        ("<U0", (10**9,), ""),
        ("<U2", (1,), "//////////8="),  # invalid code points
        (">U2", (1,), "/////wAAAAA="),
        ("<M8[x]", (1,), "AAAAAAAAAAA="),
    ],
)
def test_invalid_parts_of_a_serialized_array_are_rejected(kind, shape, data):
    with pytest.raises((ValueError, TypeError)):
        arrays.put_together(kind, shape, data)


def test_deserialized_booleans_are_normalized_to_zero_or_one():
    found = arrays.put_together("|b1", (3,), "AAL/")  # bytes 0, 2, 255
    assert found.tobytes() == b"\0\1\1" and found.tolist() == [False, True, True]


# ---- pandas -------------------------------------------------------------------------------------------------------

TABLES = {
    "numbers": "pd.DataFrame({'a': [1, 2], 'b': [.5, None]})",
    "text": "pd.DataFrame({'a': ['x', None]}, index=['u', 'v'])",
    "objects": "pd.DataFrame({'a': [1, 'x'], 'b': [[1, 2], {'c': 3}]})",
    "times": "pd.DataFrame({'a': pd.date_range('2020', periods=2), 'b': pd.date_range('2020', periods=2, tz='Europe/Berlin')})",
    "frequency": "pd.DataFrame({'a': [1, 2]}, index=pd.date_range('2020', periods=2, freq='D'))",
    "categories": "pd.DataFrame({'a': pd.Categorical(['x', 'y'], ordered=True), 'b': pd.cut([1, 2], 2)})",
    "masked": "pd.DataFrame({'a': pd.array([1, None], dtype='Int64'), 'b': pd.array([True, None], dtype='boolean')})",
    "periods": "pd.DataFrame({'a': pd.period_range('2020', periods=2, freq='M')})",
    "differences": "pd.DataFrame({'a': pd.to_timedelta([1, 2], unit='s')})",
    "grouped": "pd.DataFrame({'a': [1, 1], 'b': [2, 3]}).groupby('a').agg({'b': ['sum', 'mean']})",
    "levels": "pd.DataFrame({'a': [1, 2]}, index=pd.MultiIndex.from_tuples([('x', 1), ('y', 2)], names=['p', None]))",
    "empty": "pd.DataFrame(columns=['a'])",
    "rows only": "pd.DataFrame(index=[1, 2])",
    "same name twice": "pd.DataFrame([[1, 2]], columns=['a', 'a'], index=pd.Index([3], name='n'))",
    "same index twice": "pd.DataFrame({'a': [1, 2]}, index=['r', 'r'])",
}


@PANDAS
@pytest.mark.parametrize("table", TABLES)
def test_data_frames_are_passed_unchanged_in_both_directions(with_pandas, table):
    program = f"import pandas as pd\ndef f(): return {TABLES[table]}\ndef g(x): return x"
    tests = (
        f"import pandas as pd\npd.testing.assert_frame_equal(f(), {TABLES[table]}, check_exact=True)",
        f"pd.testing.assert_frame_equal(g({TABLES[table]}), {TABLES[table]}, check_exact=True)",
        f"assert f().equals({TABLES[table]}) and list(f().columns) == list({TABLES[table]}.columns)",
    )
    assert outcome(with_pandas, program, *tests) == ("passed", "")


@PANDAS
def test_different_data_frames_never_compare_equal(with_pandas):
    program = f"import pandas as pd\nT = [{', '.join(TABLES.values())}]\ndef f(n): return T[n]"
    pairs = [(a, b) for a, b in itertools.product(range(len(TABLES)), repeat=2) if a != b]
    values = list(TABLES.values())
    tests = [f"import pandas as pd\nassert f({a}).equals({values[b]}), 'unequal'" for a, b in pairs]
    (found,) = with_pandas.run([Job(program, tuple(tests))])
    assert (found.verdict, any(found.tests)) == ("failed", False), found


@PANDAS
@pytest.mark.parametrize(
    ("program", "test"),
    [
        ("def f(d): d['b'] = d['a'] * 2", "d = pd.DataFrame({'a': [1, 2]})\nf(d)\nassert d['b'].tolist() == [2, 4]"),
        ("def f(s): s.iloc[0] = 9", "s = pd.Series([1, 2])\nf(s)\nassert s.tolist() == [9, 2]"),
        ("def f(s): return s.max()", "assert f(pd.Series([1, 2])) == 2"),
        ("def f(): return pd.Timestamp('2020', tz='UTC')", "assert f() == pd.Timestamp('2020', tz='UTC') and f().year == 2020"),
        ("def f(): return pd.NaT, pd.NA, pd.Timedelta(3, 's')", "a, b, c = f()\nassert a is pd.NaT and b is pd.NA and c.seconds == 3"),
        ("def f(): return pd.Series(['a', 'b']).unique()", "assert list(f()) == ['a', 'b']"),
        ("def f(): return pd.Index([1, 2], name='n')", "assert f().name == 'n' and list(f()) == [1, 2]"),
        ("def f(): return pd.DataFrame({'a': [1, 1, 2]}).groupby('a')", "assert f().size().tolist() == [2, 1]"),
        ("def f(): return pd.DataFrame({'a': [1]})", "import pandas\nassert isinstance(f(), pandas.DataFrame) and f()['a'][0] == 1"),
    ],
)  # fmt: skip
def test_correct_programs_with_pandas_pass(with_pandas, program, test):
    assert outcome(with_pandas, f"import pandas as pd\n{program}", test) == ("passed", "")


@PANDAS
def test_data_frame_subclasses_support_method_calls_but_not_comparison(with_pandas):
    program = "import pandas as pd\nclass D(pd.DataFrame): pass\ndef f(): return D({'a': [1, 2]})"
    same = "import pandas as pd\npd.testing.assert_frame_equal(f(), pd.DataFrame({'a': [1, 2]}))"
    (found,) = with_pandas.run([Job(program, (same, "assert f()['a'].tolist() == [1, 2] and f().shape == (2, 1)"))])
    assert (found.verdict, found.tests) == ("unsupported_test", (False, True)), found


@PANDAS
@pytest.mark.parametrize(
    "test",
    [
        "assert pd.DataFrame({'a': [1]}).query(f()).empty",
        "assert pd.eval(f()) == 1",
        "assert pd.DataFrame({'a': [1]}).eval(f()) == 1",
        "assert pd.read_csv(f()) is not None",
        "pd.DataFrame().to_csv('/tmp/ilf-forged')",
        "import io\npd.read_pickle(io.BytesIO(b'cos\\nsystem\\n(Vtouch /tmp/ilf-forged\\ntR.'))",
    ],
)
def test_pandas_functions_that_run_code_or_access_files_are_unsupported(with_pandas, test):
    program = "def f(): return \"@pd.io.common.os.system('touch /tmp/ilf-forged') == 0\""
    assert outcome(with_pandas, program, test)[0] == "unsupported_test"
    assert not Path("/tmp/ilf-forged").exists()


# ---- attacks ------------------------------------------------------------------------------------------------------

FORGED_SUBCLASS = """
class L(np.ndarray):
    def __eq__(self, o): return np.True_
    __ne__ = lambda self, o: np.False_
    __array__ = lambda self, *a, **k: np.array([1, 2])
    __array_ufunc__ = lambda self, *a, **k: np.True_
    __array_function__ = lambda self, *a, **k: True
    def __bool__(self): return True
def f(): return np.array([6, 7]).view(L)
"""
FORGED_INTERFACE = """
class P:
    __array_interface__ = {'data': (ADDRESS, False), 'shape': (2,), 'typestr': '<i8', 'version': 3}
    __array_ufunc__ = lambda self, *a, **k: np.True_
    __array_function__ = lambda self, *a, **k: True
    __array_priority__ = 1000
    def __eq__(self, o): return np.True_
    def __len__(self): return 2
    def __getitem__(self, i): return [6, 7][i]
def f(): return P()
"""
FORGERIES = {
    "subclass": FORGED_SUBCLASS,
    "posing as an array": FORGED_INTERFACE.replace("ADDRESS", "8"),
    "posing in an array": FORGED_INTERFACE.replace("ADDRESS", "8").replace("return P()", "a = np.empty(2, object); a[0] = a[1] = P(); return a"),
    "single number": "class F(np.float64):\n    def __eq__(s, o): return True\n    __hash__ = None\ndef f(): return F(6)",
    "patched comparison": "np.equal = np.allclose = np.array_equal = np.ndarray = lambda *a, **k: True\ndef f(): return np.array([6, 7])",
    "patched module": "import sys, types\nm = types.ModuleType('numpy')\nm.ndarray = m.float64 = int\nsys.modules['numpy'] = m\ndef f(): return [6, 7]",
    "masked": "def f(): return np.ma.array([1, 2], mask=[1, 1])",
    "record": "def f(): return np.array([(6, 7)], 'i8,i8')",
}  # fmt: skip


@pytest.mark.parametrize("forgery", FORGERIES)
@pytest.mark.parametrize(
    "test",
    [
        "assert (f() == np.array([1, 2])).all()",
        "assert (np.array([1, 2]) == f()).all()",
        "assert np.all(np.equal(f(), [1, 2]))",
        "assert np.array_equal(f(), [1, 2])",
        "assert np.allclose(f(), [1, 2])",
        "np.testing.assert_array_equal(f(), [1, 2])",
        "np.testing.assert_allclose([1, 2], f())",
        "np.testing.assert_equal(f(), np.array([1, 2]))",
        "assert f() == 1",
        "assert 1 == f()",
        "assert np.float64(1) == f()",
        "import pytest\nassert f() == pytest.approx([1, 2])",
    ],
)
def test_forged_numpy_values_never_pass_comparisons(numpy_only, forgery, test):
    numpy_only.run([Job("def f(): return 1", ("assert f() == 1",))])
    (worker,) = numpy_only._workers
    verdict, detail = outcome(numpy_only, FORGERIES[forgery], test)
    assert verdict in ("failed", "unsupported_test"), detail
    assert numpy_only._workers == [worker]  # the forged address did not crash the worker


@LINUX
@pytest.mark.parametrize(
    "attempt",
    [
        f"open({str(SITE / 'numpy' / 'planted.py')!r}, 'w')",
        f"open({str(SITE / 'numpy' / '__init__.py')!r}, 'a')",
        f"open({str(SITE / 'planted.py')!r}, 'w')",
        f"np.save({str(SITE / 'numpy' / 'planted')!r}, [1])",
        f"np.memmap({str(SITE / 'numpy' / 'version.py')!r}, mode='r+')[0]",
        "np.memmap('/etc/passwd', mode='r')[0]",
        "np.fromfile('/etc/passwd', 'u1')[0]",
        "np.loadtxt('/etc/passwd', str)",
        f"open({str(Path(pytest.__file__))!r}).read()",
        f"os.listdir({str(Path(pytest.__file__).parent)!r})",
        f"set(os.listdir({str(SITE)!r})) <= {{'numpy', 'numpy.libs', 'numpy-{np.__version__}.dist-info'}} and int('x')",
        "__import__('pytest')",
        "sys.argv = ['f2py', '-c', 'x.f90', '-m', 'm']; import numpy.f2py; numpy.f2py.main(); int('x')",
        "np.load('pickled.npy', allow_pickle=True)",
        "np.ctypeslib.load_library('libc.so.6', '/lib').fork() and int('x')",
        "subprocess.run([sys.executable, '-c', ''])",
    ],
)
def test_programs_cannot_escape_the_sandbox_through_numpy(numpy_only, attempt):
    if numpy_only.isolation.open:
        pytest.skip("this machine leaves something open")
    program = (
        "import os, pickle, subprocess, sys\n"
        "class Runs:\n"
        "    def __reduce__(self): return subprocess.run, (['true'],)\n"
        "np.save('pickled.npy', np.array([Runs()], dtype=object), allow_pickle=True)\n"
        "def f():\n"
        "    try:\n"
        f"        {attempt}\n"
        "    except (OSError, ImportError, ValueError, AttributeError, SystemExit) as e:\n"
        "        return 'stopped'\n"
        "    return 'done'\n"
    )
    before = sorted(os.listdir(SITE)), sorted(os.listdir(SITE / "numpy"))
    assert outcome(numpy_only, program, "assert f() == 'stopped'") == ("passed", "")
    assert (sorted(os.listdir(SITE)), sorted(os.listdir(SITE / "numpy"))) == before


@pytest.mark.parametrize(
    "test",
    [
        "np.load(f())",
        "np.loadtxt(f())",
        "np.fromfile(f())",
        "np.memmap(f())",
        "np.save(f(), 1)",
        "np.zeros(1).tofile('/tmp/ilf-forged')",
        "np.ctypeslib.ctypes.CDLL(None)",
        "import io\nnp.load(io.BytesIO(g()), allow_pickle=True)",
    ],
)
def test_file_access_with_numpy_in_tests_is_unsupported(numpy_only, test):
    program = (
        "import io, os\nclass Runs:\n    def __reduce__(self): return os.mkdir, ('/tmp/ilf-forged',)\n"
        "def f(): return '/etc/passwd'\n"
        "def g():\n    b = io.BytesIO()\n    np.save(b, np.array([Runs()], dtype=object), allow_pickle=True)\n    return b.getvalue()"
    )
    assert outcome(numpy_only, program, test)[0] == "unsupported_test"
    caught = f"import io\ntry:\n    {test.splitlines()[-1]}\nexcept BaseException:\n    pass"
    assert outcome(numpy_only, program, caught)[0] == "unsupported_test"
    assert not Path("/tmp/ilf-forged").exists()


@LINUX
def test_memory_limit_excludes_packages_and_numpy_is_single_threaded(with_pandas, numpy_only):
    for sandbox in (numpy_only, with_pandas):
        assert (
            outcome(sandbox, "def f(): return np.ones(20 * 2**20).sum()", f"assert f() == {20 * 2**20}")[0] == "passed"
        )
        assert outcome(sandbox, "def f(): return np.ones(40 * 2**20).sum()", "assert f() == 0")[0] == "memory"
    # numpy uses one thread, however many cores the machine has.
    program = "import resource, time\na = np.ones((700, 700))\ndef f():\n    start = time.perf_counter()\n    for _ in range(9): a @ a\n"
    program += "    return resource.getrusage(resource.RUSAGE_SELF).ru_utime <= time.perf_counter() - start + 1"
    assert outcome(numpy_only, program, "assert f() == True") == ("passed", "")


@LINUX
def test_worker_folder_is_removed_when_the_parent_process_exits(tmp_path):
    code = (
        "import os\nfrom ilf.sandbox import *\n"
        "s = Sandbox(Limits(packages=('numpy',), isolation='off', workers=1))\n"
        's.run([Job(\'open("left", "w").write("x")\', (\'import numpy as np\\nassert np.sum([1, 2]) == 3\',))])\n'
        "print(s._workers[0].report['folder'], flush=True)\nos._exit(0)"
    )
    environment = os.environ | {"PYTHONPATH": str(ROOT / "src")}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)
    folder, deadline = Path(done.stdout.strip()), time.monotonic() + 10
    assert folder.name.startswith("ilf-"), done
    while folder.exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not folder.exists()


def test_programs_start_with_the_same_numpy_random_state():
    found = []
    for _ in range(2):
        sandbox = Sandbox(Limits(packages=("numpy",), workers=1))
        found += [outcome(sandbox, f"def f(): return np.random.rand()  # {n}", "assert f() == 0")[1] for n in range(2)]
        sandbox.close()
    assert len(set(found)) == 1 and "the result is" in found[0]


@LINUX
def test_other_packages_next_to_the_standard_library_are_hidden(numpy_only):
    places = [str(Path(os.__file__).parent / name) for name in ("site-packages", "dist-packages")]
    places.append("/usr/lib/python3/dist-packages")
    program = f"import os\ndef f(): return [n for p in {places} if os.path.isdir(p) for n in os.listdir(p)]"
    if "root" not in numpy_only.isolation.mechanisms:
        pytest.skip("this machine refuses a new root")
    if not any(os.listdir(place) for place in filter(os.path.isdir, places)):
        pytest.skip("no package lies next to the standard library")
    without = Sandbox(Limits(workers=1))
    numpy = {"numpy", "numpy.libs", f"numpy-{np.__version__}.dist-info"}
    for sandbox, shown in ((without, set()), (numpy_only, numpy)):
        (found,) = sandbox.run([Job(program, (f"assert set(f()) <= {shown}",))])
        assert found.passed, found
    without.close()


REFUSING = """
import ctypes, sys
from ilf.sandbox import *
from ilf.sandbox.worker import seccomp
rules = seccomp.Filter(seccomp._ALLOW)
rules.on([(272, 97), (165, 40)], seccomp._error(1))
ctypes.CDLL(None).prctl(38, 1, 0, 0, 0)
rules.compiled().install()
sandbox = Sandbox(Limits(packages=("numpy",), workers=1))
program = "import numpy as np, numpy.f2py\\ndef f(path):\\n    try:\\n        return len(open(path).read())\\n    except OSError:\\n        return 0"
found = sandbox.run([Job(program, ("assert f(%r) == 0", "assert f(%r) > 0", "assert np.sum([1, 2]) == 3"))])
print(sandbox.isolation.mechanisms, sandbox.isolation.open, found[0].tests)
"""


@LINUX
def test_other_packages_are_unreadable_without_namespaces():
    if str(SITE).startswith(os.path.dirname(os.__file__)):
        pytest.skip("packages lie among the interpreter's libraries, which programs may read")
    code = f"import sys; sys.path.insert(0, {str(ROOT / 'src')!r})\n" + REFUSING % (pytest.__file__, np.__file__)
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert found.stdout == "('landlock', 'seccomp') () (True, True, True)\n", found


@pytest.mark.parametrize(
    "content",
    [
        '{"numpy.ndarray": ["|O8", {"tuple": [1]}, "AAAAAAAAAAA="]}',
        '{"numpy.generic": ["|V8", {"tuple": []}, "AAAAAAAAAAA="]}',
        '{"numpy.ndarray": ["<f8", {"tuple": [1000000000]}, ""]}',
        '{"numpy.dtype": ["O"]}',
        '{"numpy.type": ["memmap"]}',
        '{"numpy.type": ["f2py"]}',
        '{"shared": [1, "numpy.ndarray"]}',
        '{"object": [0, "like", "x", {"numpy.ndarray": ["<i8", {"tuple": [1]}, "BQAAAAAAAAA="]}]}',
        '{"type": ["numpy:memmap"]}',
    ],
)
def test_forged_messages_fail_and_leave_the_worker_usable(numpy_only, content):
    numpy_only.run([Job("def f(): return 1", ("assert f() == 1",))])
    (worker,) = numpy_only._workers
    program = (
        f"import os\ndef f():\n    t = b'[\"value\", {content}]'\n    os.write(4, len(t).to_bytes(4, 'little') + t)\n"
    )
    verdict, detail = outcome(numpy_only, program, "assert f() == 5", "assert f() is None")
    assert verdict == "failed", detail
    assert (
        numpy_only._workers == [worker] and outcome(numpy_only, "def f(): return 1", "assert f() == 1")[0] == "passed"
    )


def test_oversized_arrays_are_not_serialized():
    with pytest.raises(serialization.TooLong):
        arrays.taken(np.broadcast_to(np.int8(0), 1 << 40))


def test_programs_with_stdin_and_stdout_can_import_packages(numpy_only):
    program = IMPORT_NUMPY + "print(*np.cumsum(list(map(int, input().split()))))"
    jobs = [
        Job(program, inputs=("1 2 3\n", "5\n"), outputs=("1 3 6\n", "5\n")),
        Job(IMPORT_NUMPY + "def f(): return np.arange(2)", ("import numpy as np\nnp.load('x')",)),
    ]
    script, refused = numpy_only.run(jobs)
    assert script.passed, script
    assert refused.verdict == "unsupported_test", refused  # file access in tests is blocked again after the script

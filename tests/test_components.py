"""Components, which a configuration names by `_target_`: their checks before they are called, and their keys."""

import importlib
import linecache
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
from conftest import compose_settings

from ilf.components import Component, Needs, from_node, key_of, node_of, read
from ilf.sampling import HFSampler
from ilf.types import InputError

WRONG = {
    "a module that is not there": (
        ["optimizer._target_=nowhere.Adam"],
        r"optimizer\._target_='nowhere\.Adam': can't be",
    ),
    "a misspelt class": (["optimizer._target_=torch.optim.Adamm"], r"Did you mean torch\.optim\.Adam\?"),
    "no class": (["optimizer._target_=torch.optim.adamw"], r"optimizer\._target_=.*must be a class or function"),
    "a class of another kind": (
        ["optimizer._target_=torch.nn.Linear"],
        r"optimizer\._target_=.*must be a torch\.optim",
    ),
    "a misspelt argument": (
        ["+optimizer.epss=1"],
        r"optimizer\.epss=1: is not an argument .*Did you mean optimizer\.eps\?",
    ),
    "a wrong type": (["optimizer.eps=tiny"], r"optimizer\.eps='tiny': must be a valid number"),
    "a list that is too short": (["optimizer.betas=[0.9]"], r"optimizer\.betas=\[0\.9\]"),
    "what a run passes": (["+optimizer.lr=1"], r"optimizer\.lr=1: is an argument that every run passes itself"),
    "no target": (["~optimizer._target_"], r"optimizer\._target_=null: must name a class or function"),
    "no part": (["callbacks.unit_tests=3"], r"callbacks\.unit_tests=3: must be a mapping"),
    "a key of Hydra's that would be passed over": (["+optimizer._recursive_=false"], r"optimizer\._recursive_=False"),
    "a scheduler of no optimizer": (["scheduler._target_=torch.nn.Linear"], r"scheduler\._target_=.*LRScheduler"),
    "a missing argument": (
        ["+callbacks.stop._target_=pytorch_lightning.callbacks.EarlyStopping"],
        r"callbacks\.stop\.monitor=null: is an argument that .*EarlyStopping needs",
    ),
    "a callback that is none": (
        ["+callbacks.x._target_=pathlib.Path"],
        r"callbacks\.x\._target_=.*lightning\.Callback",
    ),
    "a logger that is none": (["+logger.x._target_=pathlib.Path"], r"logger\.x\._target_=.*loggers\.Logger"),
    "a precision": (["trainer.precision=8"], r"trainer\.precision=8: must be"),
    "callbacks twice": (
        ["+trainer.callbacks=[]"],
        r"trainer\.callbacks=\[\]: is an argument that every run passes itself",
    ),
    "a nested part": (
        ["trainer.profiler={_target_: pytorch_lightning.profilers.SimpleProfiler, dirpat: x}"],
        r"trainer\.profiler\.dirpat='x': is not an argument.*Did you mean trainer\.profiler\.dirpath\?",
    ),
    "no scorer": (["~callbacks.unit_tests"], r"callbacks\.unit_tests=null"),
    "another scorer": (
        ["callbacks.unit_tests._target_=pytorch_lightning.callbacks.Timer", "~callbacks.unit_tests.k"],
        r"callbacks\.unit_tests\._target_=.*UnitTestCallback",
    ),
}


@pytest.mark.parametrize("case", WRONG)
def test_invalid_components_are_errors_that_state_what_is_allowed(case):
    overrides, message = WRONG[case]
    with pytest.raises(InputError, match=message):
        compose_settings(*overrides)


@dataclass
class Inner:
    size: int = 1


def outer(inner, make, plain):
    return inner, make(), make(), plain


def test_each_call_of_a_component_calls_its_nested_components_again():
    node = {
        "_target_": f"{__name__}.outer",
        "inner": {"_target_": f"{__name__}.Inner", "size": 3},
        "make": {"_target_": f"{__name__}.Inner", "_partial_": True},
        "plain": {"a": [1, {"_target_": f"{__name__}.Inner"}]},
    }
    component = read(Component, node, "x")
    inner, one, other, plain = component()
    assert inner == Inner(3) and one == other == Inner() and one is not other and plain == {"a": [1, Inner()]}
    assert component()[0] is not inner


def test_components_round_trip_through_plain_values():
    component = Component("torch.optim.SGD", {"lr": 0.1, "nested": Component("torch.optim.Adam", {"eps": 1})})
    assert from_node(node_of(component)) == component
    sampler = HFSampler(n=3, temperature=0.5)
    assert from_node(node_of(sampler)) == sampler
    assert node_of(lambda: 1) is None and from_node(None) is None


SOURCE = """
from dataclasses import dataclass

@dataclass
class Mine:
    size: int = 1
    shown: bool = False

    changes_nothing = ("shown",)

    def work(self):
        return self.size{more}
"""


def test_editing_the_code_of_a_user_defined_class_changes_its_key(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(tmp_path))

    def key(source, **arguments):
        (tmp_path / "mine_of_parts.py").write_text(source)
        sys.modules.pop("mine_of_parts", None)
        importlib.invalidate_caches()
        linecache.checkcache()
        mine = importlib.import_module("mine_of_parts").Mine
        found = key_of(mine(**arguments))
        assert Component("mine_of_parts.Mine", arguments).key()["code"] == found["code"]
        return found

    first = key(SOURCE.format(more=""))
    assert first == key(SOURCE.format(more="  # a comment")) == key(SOURCE.format(more=""), shown=True)
    assert first != key(SOURCE.format(more=" + 1")) and first != key(SOURCE.format(more=""), size=2)
    versioned = SOURCE.replace("    changes_nothing", "    version = 7\n    changes_nothing")
    assert key(versioned.format(more="")) == key(versioned.format(more=" + 1")) != first


def test_editing_the_module_of_a_base_class_changes_the_key(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "derived_of_parts.py").write_text("from base_of_parts import Base\n\nclass Mine(Base): ...\n")
    keys = []
    for number in (1, 1, 2):
        (tmp_path / "base_of_parts.py").write_text(f"def helper():\n    return {number}\n\nclass Base: ...\n")
        for name in ("base_of_parts", "derived_of_parts"):
            sys.modules.pop(name, None)
        importlib.invalidate_caches()
        linecache.checkcache()
        keys.append(Component("derived_of_parts.Mine").key())
    assert keys[0] == keys[1] != keys[2]


def test_the_key_of_a_library_class_contains_the_library_version():
    code = Component("torch.optim.AdamW").key()["code"]
    assert code.startswith("torch 2.") and "+" not in code


def test_a_function_component_receives_its_callers_arguments():
    component = read(Component, {"_target_": "math.pow", "_partial_": True}, "x")
    assert component(2, 3) == 8
    with pytest.raises(InputError, match=r"x\._target_.*takes no size"):
        from typing import Annotated

        read(Annotated[Component, Needs(given=("size",))], {"_target_": "os.path.basename"}, "x")


@dataclass
class WithPath:
    file: Path


def test_fields_that_keys_can_not_contain_are_an_error_at_the_start():
    with pytest.raises(InputError, match=r"x\.file=.*store's keys.*PosixPath"):
        read(WithPath, {"_target_": f"{__name__}.WithPath", "file": "a"}, "x")

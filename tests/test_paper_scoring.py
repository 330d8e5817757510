from dataclasses import dataclass

import pytest
from conftest import CPU, MINI
from hypothesis import given
from hypothesis import strategies as st

from ilf.models.load import load_tokenizer
from ilf.sampling import Sampler
from ilf.sandbox import Limits, Sandbox
from ilf.scoring import score
from ilf.tasks.mbpp import read_rows, tasks_from
from ilf.tasks.prompts import as_paper_scores, completion_of
from ilf.training import ILFModule, MBPPDataModule, UnitTestCallback
from ilf.training.mbpp_datamodule import Contents, plan_draws
from ilf.training.trainer import make_trainer
from ilf.types import Task

PROMPT = '"""\nt\n"""\n\ndef f(x):\n'
TASK = Task(1, "test", "t", "def f(x):\n    y = x\n    return y", "f", ("assert f(1) == 1",), "", PROMPT)
AFTER = {223, 717, 940}  # gold programs with code after their entry point, which is cut


@pytest.fixture(scope="module")
def sandbox():
    made = Sandbox(Limits())
    yield made
    made.close()


def verdicts(completion, sandbox):
    """Of one completion: as written, and as the paper scores."""
    return [score([(PROMPT + completion, TASK)], sandbox, "all", as_paper)[0] for as_paper in (False, True)]


@pytest.mark.parametrize("indent", ["\t", "  ", " ", "   "])
def test_a_right_body_with_another_indentation_fails_as_the_paper_scores(indent, sandbox):
    written, paper = verdicts(f"{indent}y = x\n{indent}return y", sandbox)
    assert written.passed and not paper.passed
    assert "IndentationError" in paper.detail or "TabError" in paper.detail
    written, paper = verdicts(f"{indent}return x", sandbox)  # its first line is the one that is mended
    assert written.passed and paper.passed


@pytest.mark.parametrize(
    "body", ["    y = x\n    return y", "        y = x\n        return y", "    # x\n    return x"]
)
def test_a_body_that_starts_with_four_spaces_passes_in_both(body, sandbox):
    assert all(v.passed for v in verdicts(body, sandbox))


def test_what_comes_after_the_function_is_cut_and_a_program_without_the_prompt_is_left_as_it_is(sandbox):
    for rest in ("print(1/0)", "# a\n1/0", '"""\n1/0\n"""'):
        assert as_paper_scores(f"    return x\n\n{rest}\n") == "    return x\n\n"
    assert [v.passed for v in verdicts("    return x\n\nf = None", sandbox)] == [False, True]
    other = "def f(x):\n  y = x\n  return y"
    assert score([(other, TASK)], sandbox, "all", True)[0].passed


@given(st.text(alphabet='aZ#"_1 \t\n'))
def test_only_the_first_line_and_the_end_are_changed(text):
    found = as_paper_scores(text)
    first, *below = text.split("\n")
    lines = found.split("\n")
    assert lines[0] == (first if first.startswith("    ") else "    " + first.strip())
    ends = [i for i, line in enumerate(below) if line[:1] in tuple('aZ#"')]
    assert lines[1:] == ([*below[: ends[0]], ""] if ends else below)
    assert as_paper_scores(found) == found


@dataclass
class Same(Sampler):
    """Writes one completion."""

    completion: str = ""

    def sample(self, model, tokenizer, draws):
        return ((draw, self.completion) for draw in draws)


def test_the_callback_stores_what_was_sampled_and_executes_what_the_paper_would(sandbox):
    completion = "\ty = x\n\treturn y"
    draws = plan_draws([(TASK, PROMPT)], "evaluate", 1, 0)
    module = ILFModule(None, load_tokenizer(MINI), Same(completion=completion))
    for as_paper in (False, True):
        callback = UnitTestCallback(sandbox=sandbox, tasks={1: TASK}, as_paper=as_paper)
        data = MBPPDataModule(module.tokenizer, Contents(test_draws=draws))
        make_trainer(CPU, callbacks=[callback], epochs=1).test(module, data, verbose=False)
        (program,) = callback.programs
        assert (program.completion, program.program) == (completion, PROMPT + completion)
        assert program.verdict.passed == (not as_paper)


def test_about_half_of_mbpps_gold_programs_fail_as_the_paper_scores(mbpp_file, sandbox):
    """A published replay of 914 targets went from 909 to 470."""
    tasks = tasks_from(read_rows(str(mbpp_file), ""), None, "paper")[0][::2]  # the other half takes as long again
    programs = [(t.prompt + completion_of(t.prompt, t.code, t.entry_point), t) for t in tasks]
    written, paper = (score(programs, sandbox, "all", as_paper) for as_paper in (False, True))
    assert [t.task_id for t, v in zip(tasks, written, strict=True) if not v.passed] == []
    passed = sum(v.passed for v in paper)
    print(f"{passed} of {len(tasks)} gold programs pass as the paper scores")
    assert 0.4 < passed / len(tasks) < 0.6
    for task, verdict in zip(tasks, paper, strict=True):
        indentation = verdict.detail.startswith(("IndentationError", "TabError"))
        assert verdict.passed or indentation or task.task_id in AFTER, (task.task_id, verdict.detail)

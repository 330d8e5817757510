"""Verdicts as rewards: called as TRL documents it, and by TRL itself if it is installed."""

import json
import logging
import os
import pickle
import re
import shutil
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
from conftest import MINI, ROOT

from ilf.executors import LocalExecutor
from ilf.sandbox import Job, Limits, Reward, Sandbox, jobs, reward
from ilf.sandbox.rewards import answered, continued
from ilf.tasks.mini import Mini
from ilf.types import InputError

PAGE = (ROOT / "docs" / "how-to" / "rewards.md").read_text()
BLOCKS = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
GOOD, BAD = "def f(x):\n    return x\n", "def f(x):\n    return 1\n"
TESTS = ["assert f(1) == 1", "assert f(2) == 2"]


def fenced(code: str, language: str = "python") -> str:
    return f"```{language}\n{code}```\n"


@pytest.fixture(scope="module", autouse=True)
def ended():
    yield
    reward.close()


@pytest.mark.parametrize(
    "answer",
    [
        GOOD,
        fenced(GOOD),
        fenced(GOOD, ""),
        fenced(GOOD, "Python title=x"),
        fenced(GOOD).replace("\n", "\r\n"),
        f"At first: {fenced(BAD)}But better: {fenced(GOOD)}That is it.",
        fenced(GOOD) + "Then it prints\n" + fenced("1 2 3\n", "") + fenced("pip install x\n", "bash"),
        f"```python\n{GOOD}",  # cut off
        f"1. As follows:\n   ```python\n   {GOOD.replace(chr(10), chr(10) + '   ')}```\n",
        f"~~~~python\n{GOOD}s = '''\n~~~\n'''\n~~~~\n",
        f"<think>Maybe\n{fenced(BAD)}</think>\n{fenced(GOOD)}",
        f"Maybe\n{fenced(BAD)}</think>{GOOD}",
    ],
)
def test_program_is_extracted_from_the_answer(answer):
    chat = [{"role": "assistant", "content": answer}]
    parts = [{"role": "assistant", "content": [{"type": "text", "text": answer}]}]
    calls = [{"role": "assistant", "content": BAD}, {"role": "tool", "content": BAD}, *chat]
    assert reward(completions=[answer, chat, parts, calls], tests=[TESTS] * 4) == [1.0] * 4


@pytest.mark.parametrize(
    "answer",
    [
        "",
        BAD,
        fenced(BAD),
        f"{fenced(GOOD)}{fenced(BAD)}",
        f"<think>\n{fenced(GOOD)}",  # cut off before the answer
        f"{fenced(GOOD)}</think>I do not know.",
        fenced(GOOD, "rust"),
        "import os\nos._exit(0)",
        "import sys\nsys.exit(0)",
        "def f(x):\n    while True: pass",
    ],
)
def test_incorrect_or_missing_programs_get_zero_reward(answer):
    calls = [{"role": "assistant", "content": None, "tool_calls": []}]
    one = Reward(Limits(time_limit=1, workers=1))
    assert one(completions=[answer, [], calls], tests=[TESTS] * 3) == [0.0] * 3
    one.close()


def test_each_completion_is_scored_with_its_own_row():
    tests = [TESTS, ["assert f(1) == 1"], None, ["assert f(one) == 1"], ["import socket\nassert f(1) == 1"], TESTS]
    setup = [None, None, None, "one = 1", None, "def f(x): return x"]
    found = reward(completions=[BAD] * 6, tests=tests, setup_code=setup, level=[1] * 6, trainer_state=object())
    assert found == [0.0, 1.0, None, 1.0, None, 1.0]
    assert reward(completions=[BAD], tests=[None]) == [None]
    assert reward(completions=[], tests=[]) == []


def test_undecided_verdicts_can_be_given_zero_reward():
    strict = Reward(Limits(workers=1), undecided=0.0)
    equal = "class Same:\n    __eq__ = lambda *a: True\ndef f(x): return Same()"
    assert reward(completions=[equal], tests=[TESTS])[0] in (0.0, None)
    assert strict(completions=[equal, BAD, BAD], tests=[TESTS, ["import socket"], None]) == [0.0, 0.0, None]
    strict.close()


def test_partial_reward_is_the_share_of_passed_tests():
    share = Reward(Limits(workers=1), partial=True, name="share")
    loops = "def f(x):\n    while x > 1: pass\n    return x"
    assert share(completions=[GOOD, BAD, "", loops], tests=[TESTS] * 4, time_limit=[1] * 4) == [1.0, 0.5, 0.0, 0.5]
    share.close()


def test_verdicts_and_details_are_logged_to_trl():
    logged = {}
    found = reward(completions=[GOOD, BAD, ""], tests=[TESTS, TESTS, None], log_extra=logged.__setitem__)
    assert found == [1.0, 0.0, None]
    assert logged["reward_verdict"] == ["passed", "failed", None]
    assert "the result is 1" in logged["reward_detail"][1]


def test_rows_may_have_inputs_and_outputs_instead_of_tests():
    script = "```python\nprint(2 * int(input()))\n```"
    columns = {"tests": [None, TESTS, None], "inputs": [["1", "2"], None, None], "outputs": [["2", "4"], None, None]}
    assert Reward(partial=True)(completions=[script, GOOD, script], **columns) == [1.0, 1.0, None]
    columns["outputs"] = [["2", "5"], None, None]
    assert Reward(partial=True)(completions=[script, GOOD, script], **columns) == [0.5, 1.0, None]
    with pytest.raises(InputError, match=r"outputs=.*as many as inputs"):
        Reward()(completions=[script], inputs=[["1"]], outputs=[[]])


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({}, r"tests=null.*columns \['level'\].*[Rr]ename"),
        ({"tests": "assert f(1) == 1"}, r"tests=.*must have 2 values"),
        ({"tests": [TESTS]}, r"tests=.*must have 2 values"),
        ({"tests": ["assert f(1) == 1"] * 2}, r"tests='assert.*list of strings"),
        ({"tests": [[1], [2]]}, r"tests=\[1\].*list of strings"),
        ({"tests": [3, 4]}, r"tests=3.*list of strings"),
        ({"tests": [TESTS, []]}, r"tests=.*one test at least"),
        ({"tests": [TESTS] * 2, "setup_code": [1, 2]}, r"setup_code=1.*string"),
        ({"tests": [TESTS] * 2, "setup_code": ["x = 1"]}, r"setup_code=.*must have 2 values"),
        ({"tests": [TESTS] * 2, "time_limit": [1, 0]}, r"time_limit=0.*3600"),
        ({"tests": [TESTS] * 2, "time_limit": ["1", "1"]}, r"time_limit='1'.*3600"),
        ({"tests": [TESTS] * 2, "prompts": ["a"]}, r"prompts=.*must have 2 values"),
        ({"tests": [TESTS] * 2, "completions": [{"content": GOOD}, 3]}, r"completions=.*role and content"),
    ],
)
def test_invalid_columns_are_an_error_before_the_sandbox_starts(columns, message):
    one = Reward()
    with pytest.raises(InputError, match=message):
        one(**{"completions": [GOOD, BAD], "level": [1, 2], **columns})
    assert not one._started


def test_continued_rejects_conversations():
    with pytest.raises(InputError, match=r"prompts=.*strings.*program=continued"):
        Reward(program=continued)(completions=[GOOD], prompts=[[{"role": "user", "content": "f"}]], tests=[TESTS])
    assert continued("def f(x):\n", "    return x\n") == GOOD and answered("def f(x):\n", GOOD) == GOOD


def test_sandbox_is_reused_within_a_process_but_not_across_processes():
    one = Reward(Limits(workers=1))
    assert one(completions=[GOOD], tests=[TESTS]) == [1.0]
    (worker,) = one._started[os.getpid()][0]._workers
    assert one(completions=[BAD], tests=[TESTS]) == [0.0]
    assert one._started[os.getpid()][0]._workers == [worker]
    reader, writer = os.pipe()
    if os.fork() == 0:  # some launchers fork their processes
        try:
            found = one(completions=[BAD, GOOD], tests=[TESTS] * 2)
            os.write(writer, json.dumps([found, worker in one._started[os.getpid()][0]._workers]).encode())
            one.close()
        finally:
            os._exit(0)
    os.wait()
    assert json.loads(os.read(reader, 100)) == [[0.0, 1.0], False]
    assert one(completions=[GOOD, BAD + "#"], tests=[TESTS] * 2) == [1.0, 0.0]
    assert one._started[os.getpid()][0]._workers == [worker]
    again = pickle.loads(pickle.dumps(one))
    assert (again.__name__, again._limits, again._started) == ("reward", one._limits, {})
    one.close()


def test_calls_from_several_threads_return_correct_rewards():
    one, programs = Reward(Limits(workers=2)), [f"def f(x):\n    return x + {i % 5 // 3}  # {i}" for i in range(60)]
    start = threading.Barrier(3)

    def call(part):
        start.wait()
        return [one(completions=programs[i : i + 2], tests=[TESTS] * 2) for i in range(20 * part, 20 * part + 20, 2)]

    with ThreadPoolExecutor(3) as pool:
        found = [value for part in pool.map(call, range(3)) for pair in part for value in pair]
    assert found == [float(i % 5 < 3) for i in range(60)]
    one.close()


def test_processors_are_divided_among_the_processes_of_a_launch(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: range(8))
    for processes, workers in (("4", 2), ("16", 1)):
        monkeypatch.setenv("LOCAL_WORLD_SIZE", processes)
        one = Reward()
        assert one(completions=[GOOD], tests=[TESTS]) == [1.0]
        assert one._started[os.getpid()][0].limits.workers == workers
        one.close()


@pytest.mark.parametrize(
    ("contents", "processors"),
    [
        (["max 100000\n"], 8),
        (["250000 100000\n"], 2),
        (["50000 100000\n"], 1),
        (["-1\n", "100000\n"], 8),
        (["300000\n", "100000\n"], 3),
    ],
)
def test_processor_limit_of_a_container_bounds_the_workers(contents, processors, tmp_path, monkeypatch, caplog):
    files = [tmp_path / str(i) for i in range(len(contents))]
    for file, content in zip(files, contents, strict=True):
        file.write_text(content)
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: range(8))
    monkeypatch.setattr(jobs, "_CPU_LIMITS", ((str(tmp_path / "missing"),), tuple(map(str, files))))
    assert jobs.cores() == processors
    for workers in (processors, processors + 1):
        caplog.clear()
        LocalExecutor(workers=workers).check()
        assert [f"executor.workers={workers}" in record.getMessage() for record in caplog.records] == (
            [True] if workers > processors else []
        )


def test_missing_isolation_is_logged_once(caplog):
    one = Reward(Limits(isolation="off", workers=1))
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            assert one(completions=[GOOD], tests=[TESTS]) == [1.0]
    one.close()
    (record,) = [record for record in caplog.records if record.name == "ilf.sandbox.rewards"]
    assert "left open" in record.getMessage()


# ---- the documentation page, and TRL itself ---------------------------------------------------------------------


def test_page_lists_every_column():
    from ilf.sandbox.rewards import _COLUMNS

    assert re.findall(r"^\| `(\w+)` \|", PAGE, re.M) == list(_COLUMNS)


def test_options_example_on_the_page_runs():
    scope = {}
    exec(BLOCKS[1], scope)
    scope["reward"].close()


def trl():
    return pytest.importorskip("trl", reason="pip install -r requirements-extras.txt")


def tiny(folder, **more):
    """Return the settings of a short training of mini on a CPU: by default one step of four completions."""
    own = {"max_steps": 1, "per_device_train_batch_size": 4, "num_generations": 4, "max_completion_length": 48}
    own |= {"use_cpu": True, "bf16": False, "report_to": "none", "save_strategy": "no", "logging_steps": 1, **more}
    return trl().GRPOConfig(str(folder), **own)


@pytest.mark.slow
def test_training_example_on_the_page_runs(tmp_path):
    trl()
    chat = shutil.copytree(MINI, tmp_path / "chat")
    template = "{% for message in messages %}{{ message['content'] }}\n{% endfor %}"
    settings = json.loads((chat / "tokenizer_config.json").read_text())
    (chat / "tokenizer_config.json").write_text(json.dumps({**settings, "chat_template": template}))
    code = BLOCKS[0].replace("Qwen/Qwen2.5-Coder-0.5B-Instruct", str(chat))
    code = code.replace('GRPOConfig("outputs/grpo")', "tiny(folder)")
    assert str(chat) in code and "tiny(" in code
    scope = {"tiny": tiny, "folder": tmp_path / "out"}
    exec(code, scope)
    (first, *_) = scope["trainer"].state.log_history
    assert 0 <= first["rewards/reward/mean"] <= 1


@pytest.mark.slow
def test_trl_rewards_match_the_sandbox_verdicts(tmp_path):
    from datasets import Dataset

    tasks = Mini().read("data")[0][:12]
    rows = [{"prompt": t.prompt, "tests": list(t.tests), "setup_code": t.setup or None} for t in tasks]
    rows[5]["tests"] = rows[7]["tests"] = None
    seen, limits = [], Limits(time_limit=1)

    class RecordingReward(Reward):
        def __call__(self, completions, prompts, tests, **columns):
            found = super().__call__(completions, prompts=prompts, tests=tests, **columns)
            seen.append((prompts, completions, tests, found))
            return found

    recording = RecordingReward(limits, continued, name="passes")
    args = tiny(tmp_path, max_steps=3, per_device_train_batch_size=16, shuffle_dataset=False, log_completions=False)
    trainer = trl().GRPOTrainer(str(MINI), reward_funcs=recording, args=args, train_dataset=Dataset.from_list(rows))
    trainer.train()
    recording.close()
    sandbox = Sandbox(limits)
    steps = [step for step in trainer.state.log_history if "rewards/passes/mean" in step]
    assert len(seen) == len(steps) == 3
    for (prompts, completions, tests, found), step in zip(seen, steps, strict=True):
        texts = [a + b for a, b in zip(prompts, completions, strict=True)]
        jobs = [Job(text, tuple(one)) for text, one in zip(texts, tests, strict=True) if one]
        passed = [verdict.passed for verdict in sandbox.run(jobs)]
        assert [value for value in found if value is not None] == passed
        assert step["rewards/passes/mean"] == pytest.approx(sum(passed) / len(passed))
    assert any(value is None for _, _, _, found in seen for value in found)
    assert any(value == 1.0 for _, _, _, found in seen for value in found)
    sandbox.close()

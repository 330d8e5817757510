"""Feedback and refinements by an LLM: from servers on the loopback interface, local folders and stored answers."""

import json
import re
import shutil
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from statistics import median

import pytest
import torch
from conftest import MINI, SMALL, compose_settings
from transformers import AutoConfig

from ilf.feedback import llm, llm_client
from ilf.feedback.llm_client import OtherModel, check_stored
from ilf.files import JsonLines
from ilf.models import chat, decoding
from ilf.models.batches import join
from ilf.models.load import load_model, load_tokenizer
from ilf.sampling import ServedSampler
from ilf.settings import LLM
from ilf.tasks import mini
from ilf.tasks.mbpp import tasks_from
from ilf.types import Draw, Feedback, InputError, Program, Verdict

KEY = "sk-not-to-be-found-anywhere"
TASKS = {t.task_id: t for t in tasks_from(mini.rows(), None, "paper")[0]}
BY_TEXT = {t.text: t for t in TASKS.values()}
PROMPTS = compose_settings().llm
FEW = ["data.limit.test=2", "data.limit.refine=12", "data.limit.train=12", "sampler.n=2", "evaluate.k=[1]"]
FEW += ["data.limit.prompt=10"]


class Endpoint(ThreadingHTTPServer):
    """An endpoint that checks the API key and answers with feedback, or with the gold program in a code block.

    After every third answer, one request fails.
    """

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.requests, self.keys, self.failures = [], set(), 0
        self.url = f"http://127.0.0.1:{self.server_port}/v1"
        self.broken_after, self.refused_after, self.says_nothing_on = 10**9, 10**9, set()
        self.code_after_words, self.instead = "", None
        self.usage = {"prompt_tokens": 7, "completion_tokens": 3, "total_tokens": 10}
        threading.Thread(target=self.serve_forever, daemon=True).start()


class Handler(BaseHTTPRequestHandler):
    def log_message(self, *args):
        pass

    def do_POST(self):
        request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        server = self.server
        server.keys.add(self.headers["Authorization"])
        if self.headers["Authorization"] != f"Bearer {KEY}" or len(server.requests) >= server.refused_after:
            return self.reply(401, {"error": {"message": f"wrong key: {self.headers['Authorization']}"}})
        if len(server.requests) >= server.broken_after:
            return self.reply(400, {"error": {"message": "no such model"}})
        if server.failures < len(server.requests) // 3:
            server.failures += 1
            return self.reply(500, {"error": {"message": "busy"}})
        server.requests.append(request)
        if server.instead is not None:
            return self.reply(200, server.instead)
        text = re.search(r"Task:\n(.*?)\n\nIt must", request["messages"][-1]["content"], re.DOTALL)[1]
        task = BY_TEXT[text]
        answer = f"It is wrong.\n\n```python\n{task.code}\n```\nThat is all."
        if "Do not write" in request["messages"][0]["content"]:
            answer = "\n" if task.task_id in server.says_nothing_on else f"Task {task.task_id} needs {{other}} code.\n"
            answer += server.code_after_words
        return self.reply(
            200,
            {
                "id": "1",
                "object": "chat.completion",
                "created": 0,
                "model": "served",
                "usage": server.usage,
                "choices": [{"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": answer}}],
            },
        )

    def reply(self, status, body):
        data = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)


@pytest.fixture
def endpoint(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    server = Endpoint()
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    """Return the folder of a store for all tests, so that programs are sampled only once."""
    return tmp_path_factory.mktemp("shared")


@pytest.fixture
def few(shared):
    return [*FEW, f"store.dir={shared}"]


def queries(ids=(311, 312, 313), n=2, seed=0, program="def f(:"):
    feedback = [Feedback(i, "train", program, "words", "scripted") for i in ids]
    shot = Feedback(1, "prompt", "def wrong():\n    pass", "All of it.", "scripted", TASKS[1].code)
    return llm.plan_refinements(PROMPTS.refinement, feedback, TASKS, [shot], n, seed)


def answer(settings, answers):
    OtherModel(settings, 0.8).answer("refinement", queries(), answers)


def test_questions_show_examples_but_not_the_gold_program_or_feedback():
    asked = queries()
    assert len({q["seed"] for q in asked}) == 6 and [q["sample"] for q in asked] == [0, 1] * 3
    for q in asked:
        roles = [m["role"] for m in q["messages"]]
        assert roles == ["system", "user", "assistant", "user"]
        question, shown = q["messages"][-1]["content"], json.dumps(q["messages"])
        task = TASKS[q["task_id"]]
        assert task.text in question and task.tests[0] in question and "def f(:" in question
        assert "words" not in question and task.code not in shown and task.tests[1] not in shown
        assert "All of it." in shown and TASKS[1].code in q["messages"][2]["content"]


def test_stored_answers_survive_an_error_and_are_not_requested_again(endpoint, tmp_path, monkeypatch, caplog):
    caplog.set_level("INFO")
    monkeypatch.setattr(llm_client, "EVERY", 0.0)
    settings, answers = LLM(url=endpoint.url, model="m", parallel=2), JsonLines(tmp_path / "answers.jsonl")
    endpoint.broken_after = 4
    with pytest.raises(InputError, match=r"llm\.url=.*model 'm'.*OPENAI_API_KEY"):
        answer(settings, answers)
    assert 1 <= len(answers.read()) <= 4
    before = len(endpoint.requests)
    kept = answers.read()
    endpoint.broken_after = 10**9
    answer(settings, answers)
    assert len(endpoint.requests) - before == 6 - len(kept) and answers.read()[: len(kept)] == kept
    said, left = [record.message for record in caplog.records], 6 - len(kept)
    assert f"llm: {len(kept)} answers are stored, {left} are left" in said
    progress = rf"llm: 1 of {left} answers, about \d+ (s|min) left"
    assert any(re.fullmatch(progress, text) for text in said) and f"llm: {left} of {left} answers, none left" in said
    assert {(row["task_id"], row["sample"]) for row in answers.read()} == {
        (i, s) for i in (311, 312, 313) for s in (0, 1)
    }
    assert endpoint.failures > 0 and {r["temperature"] for r in endpoint.requests} == {0.8}
    assert all(r["model"] == "m" and 0 <= r["seed"] < 2**31 for r in endpoint.requests)


@pytest.mark.parametrize("reply", [{"error": {"code": 429, "message": "too many"}}, {"choices": []}, "<html>"])
def test_a_reply_without_an_answer_is_an_error_and_is_not_stored(reply, endpoint, tmp_path):
    endpoint.instead = reply
    answers = JsonLines(tmp_path / "answers.jsonl")
    with pytest.raises(InputError, match=r"llm\.url.*has no `choices`"):
        answer(LLM(url=endpoint.url, model="m"), answers)
    assert not answers.read()


def test_partial_token_usage_is_counted(endpoint, tmp_path):
    endpoint.usage, answers = {"total_tokens": 5, "prompt_tokens": 4}, JsonLines(tmp_path / "answers.jsonl")
    answer(LLM(url=endpoint.url, model="m"), answers)
    assert llm.summed(answers.read())["prompt_tokens"] == 24 and not llm.summed(answers.read())["completion_tokens"]
    assert llm.summed([{"answer": "a", "usage": usage} for usage in (None, "x", {"prompt_tokens": None})])["empty"] == 0


def test_unreachable_endpoint_is_an_error(tmp_path, monkeypatch):
    monkeypatch.setattr("openai._base_client.BaseClient._calculate_retry_timeout", lambda *a, **k: 0)
    with pytest.raises(InputError, match=r"llm\.url='http://127\.0\.0\.1:1/v1'"):
        answer(LLM(url="http://127.0.0.1:1/v1", model="m"), JsonLines(tmp_path / "a"))


@pytest.mark.parametrize(
    ("answer", "code"),
    [
        ("Wrong.\n```python\ndef f():\n    return 1\n```\nDone.", "def f():\n    return 1"),
        ("```\nx\n```\nbetter:\n```py\ndef g():\n    pass\n```", "def g():\n    pass"),
        ("```python\ndef f():\n    return 1", "def f():\n    return 1"),  # cut off
        ("```Python\ndef f():\n    return 1\n```\nThis works.", "def f():\n    return 1"),
        ("```python3\ndef f():\n    return 1\n```\nIt prints\n```text\n1\n```\n", "def f():\n    return 1"),
        ("1. Fix:\n   ```python\n   def f():\n       return 1\n   ```\n", "def f():\n    return 1"),
        ("def f():\n    return 1\n", "def f():\n    return 1"),
    ],
)
def test_program_is_the_last_code_block_of_an_answer(answer, code):
    asked = queries(ids=(311,), n=1)
    (found,) = llm.programs(asked, [{"task_id": 311, "sample": 0, "answer": answer}])
    assert found.program == code and found.completion == answer


def test_stored_answer_about_another_program_is_an_error(tmp_path):
    file = tmp_path / "answers.jsonl"
    rows = [{"task_id": q["task_id"], "sample": q["sample"], "parent": q["parent"], "answer": "x"} for q in queries()]
    rows[3]["parent"] = "0" * 64
    file.write_text("\n".join(map(json.dumps, rows)))
    with pytest.raises(InputError, match=r"answers\.jsonl:4: parent"):
        answer(LLM(path=str(file)), JsonLines(tmp_path / "out"))
    rows[3]["parent"] = rows[2]["parent"]
    file.write_text("\n".join(map(json.dumps, rows[:5])))
    answer(LLM(path=str(file)), JsonLines(tmp_path / "out"))
    assert len(JsonLines(tmp_path / "out").read()) == 5


def test_policy_trains_on_llm_refinements_from_endpoint_and_from_file(endpoint, few, small_stages, tmp_path):
    live = small_stages(*few, "arm=llm_1shot", f"llm.url={endpoint.url}", "llm.model=m", "logger=many")
    found = live.run()
    live.close()
    assert endpoint.keys == {f"Bearer {KEY}"}
    assert found["status"] == "complete" and found["arm"] == "llm_1shot" and found["matched"] is False
    assert found["llm"]["pass@1"] == 1.0 and found["llm"]["n_samples"] == 2
    rows = [json.loads(line) for line in (live.folder / "training.jsonl").read_text().splitlines()]
    assert rows and {row["source"] for row in rows} == {"llm"}
    assert {row["task_id"] for row in rows} <= set(found["refiner"]["solved_tasks"])
    everything = b"".join(f.read_bytes() for f in tmp_path.rglob("*") if f.is_file() and f.suffix != ".safetensors")
    assert KEY.encode() not in everything and b"llm_1shot" in everything
    # The stored answers give the same results without the endpoint.
    asked = len(endpoint.requests)
    again = small_stages(*few, "arm=llm_1shot", f"llm.path={live.folder / 'programs' / 'llm_answers.jsonl'}").run()
    assert len(endpoint.requests) == asked
    assert again["training_task_ids"] == found["training_task_ids"] and again["finetuned"] == found["finetuned"]
    # Tasks without stored answers count as failed in pass@1; they are not left out.
    kept = (live.folder / "programs" / "llm_answers.jsonl").read_text().splitlines()[::2]
    (tmp_path / "half.jsonl").write_text("\n".join(kept))
    half = small_stages(*few, "arm=llm_1shot", f"llm.path={tmp_path / 'half.jsonl'}").run()
    assert half["llm"]["per_task"].keys() == found["llm"]["per_task"].keys()
    assert half["llm"]["pass@1"] == pytest.approx(len(kept) / len(found["llm"]["per_task"]) / 2)


def test_llm_n_sets_the_number_of_refinements_per_program(endpoint, few, small_stages):
    asked = [f"llm.url={endpoint.url}", "llm.model=m", "refinements=llm", "refinements.tasks=annotated"]
    stages = small_stages(*few, *asked, "llm.n=1", "evaluate.k=[1,2]", "stages=[sample,annotate,refine]")
    found = stages.run()
    rows = lines(stages.folder / "programs" / "llm_answers.jsonl")
    assert rows and {row["sample"] for row in rows} == {0} and len({row["task_id"] for row in rows}) == len(rows)
    assert found["llm"]["n_samples"] == 1 and "pass@2" not in found["llm"] and "pass@2" in found["samples"]
    with pytest.raises(InputError, match=r"llm\.n=0"):
        small_stages(*few, *asked, "llm.n=0")


STAGES_OF_SHORT = {"sample", "annotate", "train_refiner", "refine"}
SHORT = [f"stages=[{','.join(STAGES_OF_SHORT)}]", "training.epochs=1", "training.validate_n=0"]


def lines(file):
    return [json.loads(line) for line in file.read_text().splitlines()]


@pytest.fixture
def asked(endpoint):
    return ["feedback=llm", f"llm.url={endpoint.url}", f"llm.model=m{endpoint.server_port}"]


def test_refiner_trains_on_llm_feedback_from_endpoint_and_from_file(endpoint, asked, few, small_stages):
    first = small_stages(*few, "stages=[sample]").run()
    failed = {int(i) for i, passed in first["samples"]["per_task"].items() if not passed}
    endpoint.says_nothing_on = {max(failed)}
    live = small_stages(*few, *SHORT, *asked)
    found = live.run()
    rows = {row["task_id"]: row for row in lines(live.folder / "programs" / "llm_feedback.jsonl")}
    feedback = {row["task_id"]: row for row in lines(live.folder / "feedback.jsonl")}
    (example,) = [f for f in feedback.values() if f["source"] == "scripted"]
    assert example["split"] == "prompt" and set(rows) | {example["task_id"]} == failed
    assert set(feedback) == failed - endpoint.says_nothing_on  # every failing task once
    assert found["annotator"] == "llm" and found["feedback_on_policy"] is True
    n, counts = len(rows), {"empty": 1, "cut_off": 0, "with_code": 0}
    assert found["llm_answers"] == {
        "feedback": {"answers": n, **counts, "prompt_tokens": 7 * n, "completion_tokens": 3 * n}
    }
    assert [r for r in found["rejected"] if "empty" in r] == [
        f"task {max(failed)} (feedback): the LLM's answer is empty"
    ]
    samples = {(row["task_id"], row["program"]): row for row in lines(live.folder / "programs" / "sample.jsonl")}
    for task_id, row in rows.items():
        system, question, answer, asked_last = (turn["content"] for turn in row["messages"])
        task, settings = TASKS[task_id], (row["model"], row["temperature"], row["max_tokens"], row["shots"], row["use"])
        assert settings == ("served", 0.8, 1024, 1, "feedback") and row["finish_reason"] == "stop"
        assert system == PROMPTS.feedback.system and example["program"] in question and answer == example["text"]
        assert all(part in asked_last for part in (task.text, *task.tests)) and task.code not in str(row["messages"])
        if task_id in feedback:
            f = feedback[task_id]
            assert (f["source"], f["text"]) == ("llm", f"Task {task_id} needs {{other}} code.")
            sample = samples[task_id, f["program"]]  # a sample of the policy; the question contains its verdict
            assert f["program"] in asked_last and f"{sample['verdict']}. {sample['detail']}" in asked_last
    refined = lines(live.folder / "programs" / "refinements.jsonl")
    assert refined and all(feedback[row["task_id"]]["text"] in row["prompt"] for row in refined)
    # The stored answers replace the endpoint.
    count = len(endpoint.requests)
    stored = live.folder / "programs" / "llm_feedback.jsonl"
    again = small_stages(*few, *SHORT, "feedback=llm", f"llm.path={stored}")
    assert again.run()["refiner"] == found["refiner"] and len(endpoint.requests) == count
    # So does the store if the endpoint has moved, and with other settings of NO_EFFECT.
    changed = ["llm.url=http://127.0.0.1:9/v1", "llm.parallel=3", "executor.workers=1", "measure=[]"]
    moved = small_stages(*few, *SHORT, "feedback=llm", asked[-1], *changed).run()
    assert moved["refiner"] == found["refiner"] and set(moved["seconds"]["reused"]) >= STAGES_OF_SHORT
    assert (again.folder / "feedback.jsonl").read_bytes() == (live.folder / "feedback.jsonl").read_bytes()
    # Stored feedback can't be used as refinements.
    with pytest.raises(InputError, match=r"llm\.path=.*'refinement'.*llm_answers"):
        small_stages(*few, "refinements=llm", f"llm.path={stored}")


def test_code_in_feedback_is_counted_and_can_be_removed(endpoint, asked, few, small_stages, caplog):
    endpoint.code_after_words = "\n```python\ndef f():\n    return 1\n```\n"
    counts = small_stages(*few, *asked, "stages=[sample,annotate]").run()["llm_answers"]["feedback"]
    assert counts["with_code"] == counts["answers"] > 0
    warning = f"{counts['answers']} of the LLM's {counts['answers']} answers contain code"
    assert warning in caplog.text
    caplog.clear()
    stages = small_stages(*few, *asked, "stages=[sample,annotate]", "feedback.transform=[no_code]")
    assert stages.run()["llm_answers"]["feedback"] == counts and warning not in caplog.text
    texts = [row["text"] for row in lines(stages.folder / "feedback.jsonl") if row["source"] == "llm"]
    assert texts and all("other" in text and "```" not in text for text in texts)


def test_mixed_feedback_asks_the_llm_only_about_its_share_of_tasks(endpoint, asked, few, small_stages):
    mixed = ["feedback=mixed", "feedback.sources=[scripted,llm]", "feedback.shares=[1,1]", *asked[1:]]
    stages = small_stages(*few, *mixed, "stages=[sample,annotate]")
    stages.run()
    sources = {row["task_id"]: row["source"] for row in lines(stages.folder / "feedback.jsonl")}
    rows = lines(stages.folder / "programs" / "llm_feedback.jsonl")
    turns = {i for i, source in sources.items() if source == "llm"}
    assert turns and "scripted" in sources.values()
    assert turns <= {row["task_id"] for row in rows if row["task_id"] > 10} | set(range(1, 11))
    assert {row["task_id"] for row in rows if row["task_id"] > 10} <= turns
    assert all(row["shots"] == 1 for row in rows)


def test_human_examples_replace_scripted_ones_and_shots_0_shows_none(endpoint, asked, few, small_stages, tmp_path):
    few = [*few, *asked, "stages=[sample,annotate]"]
    both = ["llm.shots=0", "refinements=llm", "refinements.tasks=annotated", "stages=[sample,annotate,refine]"]
    none = small_stages(*few, *both)
    found = none.run()
    assert {row["source"] for row in lines(none.folder / "feedback.jsonl")} == {"llm"} and found["llm"]["pass@1"] == 1
    stored = [none.folder / "programs" / f"llm_{name}.jsonl" for name in ("feedback", "answers")]
    for row in lines(stored[0]) + lines(stored[1]):
        assert row["shots"] == 0 and [turn["role"] for turn in row["messages"]] == ["system", "user"]
    # Feedback and refinements in the same file are told apart.
    (tmp_path / "both.jsonl").write_text("".join(file.read_text() for file in stored))
    count = len(endpoint.requests)
    again = small_stages(*few, *both, "llm.url=null", f"llm.path={tmp_path}/both.jsonl").run()
    assert again["llm"] == found["llm"] and again["llm_answers"] == found["llm_answers"]
    assert len(endpoint.requests) == count
    # Only human annotations of ids 1 to 10 are worked examples.
    file = tmp_path / "annotations.jsonl"
    columns = ("Feedback", "original_model_completion", "unedited_annotator_completion")
    wrong = TASKS[1].prompt + "    return None"
    rows = [{"task_id": i, **dict(zip(columns, (f"Mine {i}.", wrong, TASKS[i].code), strict=True))} for i in (1, 320)]
    file.write_text("\n".join(map(json.dumps, rows)))
    one = small_stages(*few, f"feedback.path={file}", "llm.feedback.system=''")
    one.run()
    by_source = {row["source"]: row for row in lines(one.folder / "feedback.jsonl")}
    assert set(by_source) == {"human", "llm"} and by_source["human"]["text"] == "Mine 1."
    for row in lines(one.folder / "programs" / "llm_feedback.jsonl"):
        assert [turn["role"] for turn in row["messages"]] == ["user", "assistant", "user"]  # no system turn
        assert row["messages"][1]["content"] == "Mine 1." and "Mine 320." not in str(row)
    with pytest.raises(InputError, match=r"llm\.shots=2.*ids 1 to 10\), and there are 1"):
        small_stages(*few, f"feedback.path={file}", "llm.shots=2")


# ---- the API key ----------------------------------------------------------------------------------------------------


def test_refused_api_key_appears_in_no_file_or_output(endpoint, asked, few, shared, cli, tmp_path, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", KEY + "\n")  # as if read from a file
    endpoint.refused_after = 5
    own = ["llm.shots=0", "stages=[sample,annotate]", "logger=many", "hydra.sweep.dir=sweep", "evaluate.k=[1]"]
    # hydra.verbose also prints the debug logs of the client and its libraries.
    done = cli("-m", *SMALL, *few, *asked, *own, "hydra.verbose=true")
    assert done.returncode != 0 and "wrong key: Bearer $OPENAI_API_KEY" in done.stderr
    assert endpoint.keys == {f"Bearer {KEY}"} and len(endpoint.requests) >= 5
    files = [file for folder in (tmp_path, shared) for file in folder.rglob("*") if file.is_file()]
    names = {file.name for file in files}
    assert {"run.log", "results.json", "failed.json", "config.yaml", "hydra.yaml", "answers.jsonl"} <= names
    assert any(name.endswith(".wandb") for name in names) and any("tfevents" in name for name in names)
    everything = b"".join(file.read_bytes() for file in files) + done.stdout.encode() + done.stderr.encode()
    assert endpoint.url.encode() in everything and KEY.encode() not in everything and KEY[3:].encode() not in everything


# ---- real models ----------------------------------------------------------------------------------------------------

TEMPLATE = (
    "{% for turn in messages %}## {{ turn['role'] }}\n{{ turn['content'] }}\n\n{% endfor %}{{ '## assistant\\n' }}"
)


@pytest.fixture(scope="module")
def chat_folder(tmp_path_factory):
    """Return the mini model with a chat template, and with a generation config that would make sampling greedy."""
    folder = tmp_path_factory.mktemp("model") / "chat"
    shutil.copytree(MINI, folder)
    (folder / "chat_template.jinja").write_text(TEMPLATE)
    (folder / "generation_config.json").write_text(json.dumps({"do_sample": True, "top_k": 1, "eos_token_id": 0}))
    return folder


def ask(settings, temperature, folder, file, seed=0):
    """Return the answers about five programs of different lengths, by task."""
    wrong = [
        Program(i, "train", 0, 0, "", "", TASKS[i].prompt + "    return 0\n" * (i - 310), Verdict("failed", "x"))
        for i in range(311, 316)
    ]
    asked = llm.plan_feedback(PROMPTS.feedback, wrong, TASKS, [], seed)
    OtherModel(settings, temperature, folder, torch.device("cpu")).answer("feedback", asked, JsonLines(file))
    return {row["task_id"]: row for row in lines(file)}


@pytest.mark.parametrize("template", [True, False])
def test_local_model_receives_turns_formatted_by_its_chat_template(template, chat_folder, tmp_path):
    folder = chat_folder if template else MINI
    found = ask(LLM(model=str(folder), parallel=3, max_tokens=12), 1e-3, folder, tmp_path / "answers.jsonl")
    model, tokenizer = load_model(folder, torch.float32), load_tokenizer(folder)
    for row in found.values():
        turns = [turn["content"] for turn in row["messages"]]
        text = "## system\n{}\n\n## user\n{}\n\n## assistant\n" if template else "{}\n\n{}\n\n"
        ids = tokenizer(text.format(*turns), return_tensors="pt").input_ids
        greedy = model.generate(ids, max_new_tokens=12, do_sample=False, pad_token_id=0)[0, ids.shape[1] :]
        assert row["answer"] == tokenizer.decode(greedy, skip_special_tokens=True)
        assert row["usage"]["prompt_tokens"] == ids.shape[1] and row["finish_reason"] in ("length", "stop")


@pytest.mark.parametrize("refills", [1, 8])  # several batches, or one
def test_resumed_local_model_gives_the_same_answers_for_the_same_seed(refills, chat_folder, tmp_path, monkeypatch):
    monkeypatch.setattr(decoding, "REFILLS", refills)
    settings, file = LLM(model=str(chat_folder), parallel=2, max_tokens=12), tmp_path / "answers.jsonl"
    found = ask(settings, 0.8, chat_folder, file)
    rows = file.read_bytes().splitlines(keepends=True)
    file.write_bytes(b"".join(rows[:3]) + rows[3][:40])  # interrupted
    assert ask(settings, 0.8, chat_folder, file) == found and file.read_bytes().startswith(b"".join(rows[:3]))
    # With fewer at once, such as after a lack of memory, the stored answers stay and the others are added.
    file.write_bytes(b"".join(rows[:3]))
    fewer = LLM(model=str(chat_folder), parallel=1, max_tokens=12)
    again = ask(fewer, 0.8, chat_folder, file)
    assert file.read_bytes().startswith(b"".join(rows[:3])) and again == found
    keys = [OtherModel(one, 0.8, chat_folder, torch.device("cpu")).key("feedback", "w") for one in (settings, fewer)]
    assert keys[0] == keys[1]
    others = ask(settings, 0.8, chat_folder, tmp_path / "others.jsonl", seed=1)
    assert [row["answer"] for row in found.values()] != [row["answer"] for row in others.values()]


def test_local_model_answers_fewer_at_once_where_memory_runs_out(chat_folder, tmp_path, monkeypatch, caplog):
    settings = LLM(model=str(chat_folder), parallel=5, max_tokens=8)
    most = 2

    def few_at_once(parts):
        batch = join(parts)
        if len(batch.lengths) > most:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return batch

    whole = ask(settings, 1e-3, chat_folder, tmp_path / "whole.jsonl")
    monkeypatch.setattr(decoding, "join", few_at_once)
    parts = ask(settings, 1e-3, chat_folder, tmp_path / "parts.jsonl")
    assert [row["answer"] for row in parts.values()] == [row["answer"] for row in whole.values()]
    assert "out of memory with 5 answers (llm.parallel) at once; continuing with 2" in caplog.text
    most = 0
    with pytest.raises(torch.OutOfMemoryError):
        ask(settings, 1e-3, chat_folder, tmp_path / "none.jsonl")


def test_local_model_answers_the_longest_questions_first(chat_folder, tmp_path, monkeypatch):
    asked = []

    def recorded(folder, batches, *rest):
        asked.extend(batches)
        return answers(folder, batches, *rest)

    answers = chat.answers
    monkeypatch.setattr(chat, "answers", recorded)
    ask(LLM(model=str(chat_folder), parallel=2, max_tokens=2), 1.0, chat_folder, tmp_path / "answers.jsonl")
    lengths = [sum(len(turn["content"]) for turn in query["messages"]) for batch in asked for query in batch]
    assert len(lengths) == 5 and lengths == sorted(lengths, reverse=True) != sorted(lengths)


def test_a_finished_answer_of_a_local_model_is_replaced_by_the_next_one(chat_folder, tmp_path, monkeypatch):
    sizes = []

    def recorded(parts):
        batch = join(parts)
        sizes.append((len(parts), len(batch.lengths)))
        return batch

    monkeypatch.setattr(decoding, "join", recorded)
    monkeypatch.setattr(decoding, "end_ids", lambda model, _: set(range(0, model.config.vocab_size, 8)))
    found = ask(LLM(model=str(chat_folder), parallel=2, max_tokens=12), 50.0, chat_folder, tmp_path / "answers.jsonl")
    lengths = [row["usage"]["completion_tokens"] for row in found.values()]
    assert len(found) == 5 and len(set(lengths)) > 1  # some finish earlier than others
    assert max(rows for _, rows in sizes) == 2 and any(parts == 2 for parts, _ in sizes)


def test_questions_that_exceed_a_local_models_positions_are_an_error(chat_folder, tmp_path):
    places = json.loads((chat_folder / "config.json").read_text())["max_position_embeddings"]
    with pytest.raises(
        InputError, match=rf"llm\.max_tokens={places}: .*a question exceeds.*Use at most \d+.*llm\.shots"
    ):
        ask(LLM(model=str(chat_folder), max_tokens=places), 1.0, chat_folder, tmp_path / "answers.jsonl")


def test_the_plan_refuses_questions_that_exceed_a_local_models_positions(chat_folder, few, small_stages):
    own = ["feedback=llm", f"llm.model={chat_folder}", "llm.shots=0"]
    with pytest.raises(InputError, match=r"llm\.max_tokens=1000: .*question about task \d+ exceeds.*Use at most \d+"):
        small_stages(*few, *own, "llm.max_tokens=1000")


def test_real_server_and_local_model_give_the_same_feedback(server, chat_folder, few, small_stages, tmp_path):
    extra = json.dumps({"do_sample": True, "top_k": 0, "eos_token_id": 0, "pad_token_id": 0})
    served = LLM(url=server, model=str(chat_folder), max_tokens=12, extra={"generation_config": extra})
    found = ask(served, 1e-3, None, tmp_path / "served.jsonl")
    local = ask(LLM(model=str(chat_folder), max_tokens=12), 1e-3, chat_folder, tmp_path / "local.jsonl")
    same = [i for i, row in found.items() if row["answer"] == local[i]["answer"]]
    # One answer may differ, because two first tokens are equally likely.
    assert found.keys() == local.keys() and len(same) >= len(found) - 1
    assert [found[i]["usage"] for i in same] == [local[i]["usage"] for i in same]
    few = [*few, "feedback=llm", f"llm.model={chat_folder}", "llm.max_tokens=8", "stages=[sample,annotate]"]
    few += [f"+llm.extra.generation_config='{extra}'", "llm.shots=2"]
    for where in ([f"llm.url={server}"], []):
        stages = small_stages(*few, *where)
        results = stages.run()
        rows = {row["task_id"]: row for row in lines(stages.folder / "programs" / "llm_feedback.jsonl")}
        feedback = [row for row in lines(stages.folder / "feedback.jsonl") if row["source"] == "llm"]
        if not where:  # the memory plan expects questions that are at least as long
            most = max(row["usage"]["prompt_tokens"] for row in rows.values())
            reading = AutoConfig.from_pretrained(chat_folder), load_tokenizer(chat_folder)
            assert most <= llm.longest_questions(stages.settings, *reading, stages.tasks)[0] < 3 * most
        empty = sum(not row["answer"].strip() for row in rows.values())
        assert feedback and all(row["text"] == rows[row["task_id"]]["answer"].strip() for row in feedback)
        assert all(len(row["messages"]) == 6 and row["model"].startswith(str(chat_folder)) for row in rows.values())
        counts = results["llm_answers"]["feedback"]
        assert (counts["answers"], counts["empty"]) == (len(rows), empty) and len(feedback) == len(rows) - empty
        assert counts["completion_tokens"] == sum(row["usage"]["completion_tokens"] for row in rows.values()) > 0
        assert counts["cut_off"] == sum(row["finish_reason"] == "length" for row in rows.values()) > 0


@pytest.mark.slow
@pytest.mark.parametrize("shots", [0, 1, 2])
def test_real_chat_model_writes_feedback_from_server_and_from_folder(shots, server, chat_model, small_stages):
    few = [*FEW, "data.limit.refine=6", "data.limit.train=6", "stages=[sample,annotate]"]
    few += ["feedback=llm", f"llm.model={chat_model}", "llm.max_tokens=64", f"llm.shots={shots}", "llm.parallel=4"]
    extra = json.dumps({"do_sample": True, "top_k": 0, "eos_token_id": 2, "pad_token_id": 2})
    for where in ([f"llm.url={server}", f"+llm.extra.generation_config='{extra}'"], []):
        stages = small_stages(*few, *where)
        stages.run()
        rows = lines(stages.folder / "programs" / "llm_feedback.jsonl")
        assert all(len(row["messages"]) == 2 + 2 * shots for row in rows)
        words = [row["text"] for row in lines(stages.folder / "feedback.jsonl") if row["source"] == "llm"]
        assert len(words) >= len(rows) - 1 > 0 and len(set(words)) > 1
        assert median(len(text.split()) for text in words) > 3, words


# ---- any text --------------------------------------------------------------------------------------------------------

LONE_SURROGATES = "a\ud83db\0\r\u2028"


class SurrogateHandler(Handler):
    """Answers with lone surrogates, which UTF-8 can't encode, as JSON escapes."""

    def do_POST(self):
        request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.requests.append(request)
        one = {"id": "1", "created": 0, "model": "served"}
        if self.path.endswith("chat/completions"):
            message = {"role": "assistant", "content": LONE_SURROGATES}
            choices = [{"index": 0, "finish_reason": "stop", "message": message}]
            return self.reply(200, one | {"object": "chat.completion", "choices": choices})
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.end_headers()
        # A surrogate pair in two parts, then half of a pair.
        for text, reason in (("    return 'a\ud83d", None), ("\ude00\ud83d'", "stop")):
            part = one | {"object": "text_completion", "choices": [{"index": 0, "text": text, "finish_reason": reason}]}
            self.wfile.write(b"data: " + json.dumps(part).encode() + b"\n\n")
        self.wfile.write(b"data: [DONE]\n\n")


@pytest.fixture
def odd():
    server = ThreadingHTTPServer(("127.0.0.1", 0), SurrogateHandler)
    server.requests = []
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server, f"http://127.0.0.1:{server.server_port}/v1"
    server.shutdown()
    server.server_close()


def test_lone_surrogates_are_replaced_in_requests_and_answers(odd, tmp_path):
    server, url = odd
    asked = queries(program="def f(:  # \ud800")
    model = OtherModel(LLM(name="reviewer", url=url, model="served"), 0.0)
    rows = JsonLines(tmp_path / "answers.jsonl")
    model.answer("refinement", asked, rows)
    assert {row["answer"] for row in rows.read()} == {"a\ufffdb\0\r\u2028"}
    check_stored(str(rows.path), ["refinement"])  # as for llm.path
    sampler = ServedSampler(url=url)
    draws = [Draw(1, "test", i, i, "def f():\n    # \udfff\n", "def f():\n") for i in range(2)]
    texts = [text for _, text in sampler.sample("served", load_tokenizer(MINI), draws)]
    assert texts == ["    return 'a\U0001f600\ufffd'"] * 2
    sent = json.dumps(server.requests, ensure_ascii=False)
    assert sent.encode() and "\ufffd" in sent

"""Servers that are started for each model: they run while the model is sampled, and leave no processes behind."""

import json
import os
import signal
import subprocess
import sys
import time
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import pytest
import warm
from conftest import MINI, ROOT, compose_settings

from ilf.components.component import key_of
from ilf.models.load import load_tokenizer
from ilf.sampling import EngineSampler
from ilf.tasks import mini as mini_tasks
from ilf.tasks.mbpp import tasks_from
from ilf.types import Draw, InputError

# A minimal server. It prints the name of its model, answers each request with another program, and has a child process
# in a session of its own. Its third argument chooses how it fails. Requests must have a seed, and none if "unseeded".
ENGINE = """
import http.server, json, os, random, subprocess, sys, time
model, port, fails, note = sys.argv[1:5]
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], start_new_session=True)
with open(note, "a") as file:
    print(model, os.getpid(), child.pid, file=file)
print("loading", model, flush=True)
if fails == "at once":
    sys.exit("no room for the model")
if fails == "silent":
    time.sleep(600)
answered = 0

class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.0"
    def log_message(self, *args): pass
    def do_GET(self):
        self.send_response(200); self.end_headers(); self.wfile.write(b"{}")
    def do_POST(self):
        global answered
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        assert asked["model"] == model
        if fails == "later" and answered == 3:
            print("CPU Generator does not use offset", flush=True); os._exit(1)
        answered += 1
        self.send_response(200); self.send_header("Content-Type", "text/event-stream")
        if fails == "broken" and answered % 2:
            self.send_header("Content-Length", "10000")
        self.end_headers()
        varies = fails != "greedy" and ("seed" in asked) != (fails == "unseeded")
        if fails == "sure" and asked["temperature"] < 1:
            varies = False
        text = f"    return {random.random() if varies else 0}\\n"
        cut = fails in ("cut", "broken") and answered % 2
        choice = {"text": text[:9], "finish_reason": None} if cut else {"text": text, "finish_reason": "stop"}
        self.wfile.write(b"data: " + json.dumps({"choices": [choice]}).encode() + b"\\n\\n")
        if not cut:
            self.wfile.write(b"data: [DONE]\\n\\n")

http.server.ThreadingHTTPServer(("127.0.0.1", int(port)), Handler).serve_forever()
"""
TOKENIZER = load_tokenizer(MINI)
DRAWS = [Draw(1, "test", i, i, "def f(x):\n", "def f(x):\n") for i in range(6)]


@pytest.fixture
def engine(tmp_path):
    (tmp_path / "engine.py").write_text(ENGINE)

    def make(fails: str = "not", **own: object) -> EngineSampler:
        command = ["$python", str(tmp_path / "engine.py"), "$model", "$port", fails, str(tmp_path / "note")]
        return EngineSampler(command=command, batch_size=1, **own)  # type: ignore[arg-type]

    return make


def started(folder: Path) -> list[tuple[str, int, int]]:
    """Return the model, the process ID and the child's process ID of each engine."""
    rows = [line.split() for line in (folder / "note").read_text().splitlines()]
    return [(model, int(process), int(child)) for model, process, child in rows]


def running(*processes: int) -> list[int]:
    def runs(process: int) -> bool:
        try:
            return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
        except OSError:
            return False

    return [process for process in processes if runs(process)]


def all_stopped(folder: Path) -> bool:
    return not running(*(one for _, *both in started(folder) for one in both))


def test_engine_runs_only_while_its_model_is_sampled(engine, tmp_path):
    sampler = engine()
    for name in ("first", "second"):
        model = tmp_path / name
        with sampler.ready(model, tmp_path):
            found = dict(sampler.sample(model, TOKENIZER, DRAWS))
            assert set(found) == set(DRAWS) and len(running(*started(tmp_path)[-1][1:])) == 2
        assert all_stopped(tmp_path)
    assert [model for model, *_ in started(tmp_path)] == [str(tmp_path / name) for name in ("first", "second")]
    said = (tmp_path / "engine.log").read_text()
    assert said.index("loading " + str(tmp_path / "first")) < said.index("loading " + str(tmp_path / "second"))


def test_the_environment_of_an_engine_belongs_to_the_key_of_its_samples(engine):
    keys = [key_of(engine(environment={"CONTEXT": size})) for size in ("512", "2048")]  # of conf/sampler/llama_cpp.yaml
    assert keys[0] != keys[1] and key_of(engine(patience=1.0)) == key_of(engine())


def test_engines_get_the_data_type_of_the_weights(engine, tmp_path):
    sampler = engine(arguments=["--dtype", "$dtype"])
    for dtype in ("float32", "bfloat16"):
        sampler.dtype = dtype
        with sampler.ready(tmp_path, tmp_path):
            assert f" --dtype {dtype}\n" in (tmp_path / "engine.log").read_text()
    assert sampler.casts and not engine().casts
    options = [file.stem for file in (ROOT / "conf" / "sampler").glob("*.yaml") if "EngineSampler" in file.read_text()]
    assert len(options) >= 4
    for option in options:  # so that fine-tuned models are not rounded
        assert compose_settings(f"sampler={option}", "sampler.module=null", "sampler.python=sh").sampler.casts


@pytest.mark.parametrize(
    ("fails", "own", "said"),
    [
        ("at once", {}, "exit status 1; its last lines are\nloading .*\nno room for the model"),
        ("silent", {"patience": 2.0}, r"sampler.patience=2.0.*did not answer.*\nloading"),
    ],
)
def test_engine_that_does_not_start_is_an_error_with_its_last_lines(engine, tmp_path, fails, own, said):
    with pytest.raises(InputError, match=f"(?s){said}"), engine(fails, **own).ready(tmp_path, tmp_path):
        raise AssertionError("it is ready")
    assert all_stopped(tmp_path)


def test_samples_from_before_an_engine_exits_are_kept(engine, tmp_path):
    sampler, found = engine("later"), []
    with (
        pytest.raises(
            InputError, match=r"(?s)exit status 1; its last lines are.*not use offset.*resumes.*seeded=false"
        ),
        sampler.ready(tmp_path, tmp_path),
    ):
        found += sampler.sample(tmp_path, TOKENIZER, DRAWS)
    assert len(found) == 3 and all_stopped(tmp_path)


@pytest.mark.parametrize("fails", ["cut", "broken"])
def test_completions_that_end_early_are_requested_again(engine, fails, tmp_path):
    sampler = engine(fails)
    with sampler.ready(tmp_path / "m", tmp_path):
        found = dict(sampler.sample(tmp_path / "m", TOKENIZER, DRAWS))
    assert set(found) == set(DRAWS) and all(len(text) > 12 for text in found.values())


def test_engines_are_reached_without_a_proxy(engine, tmp_path, monkeypatch):
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    sampler = engine(patience=20.0)
    with sampler.ready(tmp_path / "m", tmp_path):
        assert set(dict(sampler.sample(tmp_path / "m", TOKENIZER, DRAWS))) == set(DRAWS)


def test_requests_have_a_seed_if_seeded_and_samples_differ(engine, tmp_path):
    for fails, seeded in (("not", True), ("unseeded", False)):
        sampler = engine(fails, seeded=seeded)
        with sampler.ready(tmp_path, tmp_path):
            assert len({text for _, text in sampler.sample(tmp_path, TOKENIZER, DRAWS)}) == len(DRAWS)


def test_greedy_server_is_an_error_and_a_confident_model_is_not(engine, tmp_path):
    draws = [replace(DRAWS[0], sample=i, seed=i) for i in range(20)]
    for fails in ("sure", "greedy"):
        sampler, found = engine(fails), []
        expected = (
            pytest.raises(InputError, match="same program for every seed") if fails == "greedy" else nullcontext()
        )
        with sampler.ready(tmp_path, tmp_path), expected:
            found += sampler.sample(tmp_path, TOKENIZER, draws)
        assert len(found) == 20 and len({text for _, text in found}) == 1


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT, signal.SIGTERM])
def test_killed_run_leaves_no_engine_processes(engine, tmp_path, number):
    code = (
        f"import signal, sys, time; sys.path.insert(0, {str(ROOT / 'src')!r})\n"
        # A shell starts background processes, such as these tests may be, with SIGINT ignored.
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "from ilf.sampling import EngineSampler\nfrom pathlib import Path\n"
        f"here = Path({str(tmp_path)!r})\n"
        f"with EngineSampler(command={engine().command!r}).ready(here, here):\n"
        "    print('ready', flush=True)\n    time.sleep(600)\n"
    )
    run = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    assert run.stdout and run.stdout.readline() == b"ready\n"
    assert len(running(*started(tmp_path)[0][1:])) == 2
    os.kill(run.pid, number)
    run.wait(30)
    deadline = time.monotonic() + 20
    while not all_stopped(tmp_path) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert all_stopped(tmp_path)


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["sampler=vllm"], r"sampler\.python=.*without the package vllm.*sampler\.python=ENVIRONMENT"),
        (
            ["sampler=vllm", "sampler.python=/no/such/python"],
            r"sampler\.python='/no/such/python': is not an executable program",
        ),
        (
            ["sampler=transformers_serve", "sampler.command=[no-such-engine]"],
            r"sampler\.command=.*no-such-engine is",
        ),
        (["sampler=transformers_serve", "sampler.patience=0"], r"sampler\.patience"),
        (["sampler=transformers_serve", "+sampler.url=http://localhost:1/v1"], r"sampler\.url=.*sampler=openai"),
    ],
)
def test_invalid_engine_settings_are_an_error_at_the_start(overrides, said):
    with pytest.raises(InputError, match=said):
        compose_settings(*overrides).sampler.check()


def test_engine_for_a_run_on_several_machines_is_an_error(monkeypatch):
    sampler = compose_settings("sampler=transformers_serve").sampler
    monkeypatch.setenv("WORLD_SIZE", "4")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    with pytest.raises(InputError, match=r"several machines.*sampler=openai"):
        sampler.check()


def test_transformers_serve_samples_a_model_folder(tmp_path):
    pytest.importorskip("fastapi")
    pytest.importorskip("uvicorn")
    # The server clears its buffers in each step, so that large ones are slow.
    small = "sampler.arguments=[--continuous-batching,--cb-num-blocks,64,--cb-max-batch-tokens,512]"
    sampler = compose_settings(
        "sampler=transformers_serve", "sampler.max_new_tokens=32", "sampler.batch_size=8", small
    ).sampler
    with sampler.ready(MINI, tmp_path):
        found = dict(sampler.sample(MINI, TOKENIZER, DRAWS))
    assert set(found) == set(DRAWS) and len(set(found.values())) > 1


@pytest.mark.slow
def test_run_with_two_processes_samples_from_engines(tmp_path):
    """Engines serve the policy, the refiner and the fine-tuned policy one after the other, each to both processes."""
    few = ["sampler.n=4", "evaluate.k=[1]", "data.limit.test=10", "data.limit.refine=20", "data.limit.train=20"]
    own = ["sampler=transformers_serve", "sampler.batch_size=8", "trainer=ddp", "trainer.devices=2", "logger=none"]
    done = warm.run(ROOT / "run.py", [*own, *few, "hydra.run.dir=out", "store.dir=store"], tmp_path)
    assert done.returncode == 0, done.stderr[-2000:]
    started = [line for line in (tmp_path / "out" / "engine.log").read_text().splitlines() if line.startswith("$ ")]
    # The last one is for the stage evaluate.
    held = ["models/mini", "models/mini", "store/train_refiner/", "store/train_policy/"]
    assert len(started) == 4 and all(folder in line for folder, line in zip(held, started, strict=True))
    assert all("--dtype float32" in line for line in started[:1] + started[2:])
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert results["status"] == "complete" and results["processes"] == 2
    before, after = ((tmp_path / "out" / "programs" / f"{one}.jsonl").read_text() for one in ("zero_shot", "finetuned"))
    assert len(before.splitlines()) == len(after.splitlines()) == 40


@pytest.mark.slow
def test_vllm_samples_a_real_model(real_model, tmp_path):
    """With seeds, samples repeat, or the error advises seeded=false. Without seeds, they differ each time."""
    if "ILF_TEST_VLLM" not in os.environ:
        pytest.skip("ILF_TEST_VLLM names no interpreter of an environment with vLLM")
    few = ["sampler.n=5", "sampler.batch_size=20", "evaluate.k=[1]", "sampler.module=null"]
    sampler = compose_settings("sampler=vllm", *few).sampler
    sampler.python = os.environ["ILF_TEST_VLLM"]
    sampler.environment = {"VLLM_CPU_KVCACHE_SPACE": "4"}
    sampler.arguments = [*sampler.arguments, "--max-model-len", 1024]
    sampler.dtype = "bfloat16"
    tokenizer = load_tokenizer(real_model)
    prompt = tasks_from(mini_tasks.rows()[10:11], None, "paper")[0][0].prompt
    plan = [Draw(11, "test", i, i, prompt, prompt) for i in range(40)]
    try:
        with sampler.ready(real_model, tmp_path):
            first, second = (dict(sampler.sample(real_model, tokenizer, plan)) for _ in range(2))
        assert set(first) == set(plan) and len(set(first.values())) > 1
        # Other requests in a batch can change a result slightly.
        assert sum(first[draw] == second[draw] for draw in plan) > 30
    except InputError as error:
        assert "seeded=false" in str(error)
    sampler.seeded = False
    with sampler.ready(real_model, tmp_path):
        first, second = (dict(sampler.sample(real_model, tokenizer, plan)) for _ in range(2))
    assert set(first) == set(second) == set(plan) and first != second

"""Runs in several processes, started as launchers start them, match runs in one process."""

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

import psutil
import pytest
import torch
import warm
from conftest import MINI, ROOT, SMALL
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file
from transformers import AutoConfig

from ilf import distributed
from ilf.models.load import load_tokenizer
from ilf.tasks import mini
from ilf.tasks.mbpp import tasks_from
from ilf.training.mbpp_datamodule import Contents, MBPPDataModule, plan_draws
from ilf.types import Draw, Example, InputError, Task

FEW = [
    "sampler.n=2",
    "evaluate.k=[1,2]",
    "data.limit.test=4",
    "data.limit.refine=12",
    "data.limit.train=8",
    "sampler.batch_size=5",
]
BUDGET = [*SMALL, *FEW, "training.epochs=1", "measure=[]", "store.dir=store", "logger=csv", "trainer.accelerator=cpu"]


def free_port() -> str:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return str(free.getsockname()[1])


def as_torchrun(rank: int, port: str) -> dict[str, str]:
    own = {"RANK": str(rank), "LOCAL_RANK": str(rank), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    return own | {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "GROUP_RANK": "0"}


def as_srun(rank: int, port: str) -> dict[str, str]:
    step = {
        "SLURM_STEP_NUM_TASKS": "2",
        "SLURM_STEP_NUM_NODES": "1",
        "SLURM_NODEID": "0",
        "SLURM_NODELIST": "127.0.0.1",
    }
    return step | {"SLURM_PROCID": str(rank), "SLURM_LOCALID": str(rank), "SLURM_JOB_ID": "1", "MASTER_PORT": port}


@contextlib.contextmanager
def two_processes(program: Path, arguments: list[str], folder: Path, launcher=as_torchrun) -> Iterator[list]:
    """Start a program in two processes that end with the block; they print to printed0 and printed1."""
    port, processes = free_port(), []
    try:
        for rank in range(2):
            with mock.patch.dict(os.environ, launcher(rank, port)):
                processes.append(warm.start(program, arguments, folder, folder / f"printed{rank}"))
        yield processes
    finally:
        for process in processes:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)


def exit_codes_of(processes, folder: Path) -> list[int]:
    """Return the exit codes of processes that end by themselves."""
    for process in processes:
        process.join(120)
    codes = [process.exitcode for process in processes]
    assert None not in codes, "".join(file.read_text() for file in sorted(folder.glob("printed*")))[-4000:]
    return codes


def programs(folder: Path) -> dict[str, list[tuple]]:
    """Return the samples of every stage, with their verdicts."""
    found = {}
    for file in sorted((folder / "programs").glob("*.jsonl")):
        rows = [json.loads(line) for line in file.read_text().splitlines()]
        found[file.stem] = [(r["task_id"], r["sample"], r["seed"], r["program"], r["verdict"]) for r in rows]
    return found


def results(folder: Path) -> dict:
    """Return results.json without the entries that differ between runs."""
    found = json.loads((folder / "results.json").read_text())
    return {k: v for k, v in found.items() if k not in ("seconds", "overrides", "processes", "entries")}


@pytest.fixture(scope="module")
def alone(tmp_path_factory) -> Path:
    """A run in one process."""
    folder = tmp_path_factory.mktemp("alone")
    done = warm.run(ROOT / "run.py", [*BUDGET, "hydra.run.dir=out"], folder)
    assert done.returncode == 0, done.stderr[-2000:]
    return folder


def test_a_run_that_lost_a_process_resumes_with_unchanged_results(alone, tmp_path):
    arguments = [*BUDGET, "trainer=ddp", "hydra.run.dir=killed"]
    with two_processes(ROOT / "run.py", arguments, tmp_path) as (first, other):
        deadline = time.monotonic() + 120
        samples = "store/sample/*/samples*.jsonl"
        while len(list(tmp_path.glob(samples))) < 2 and time.monotonic() < deadline and first.is_alive():
            time.sleep(0.01)
        os.killpg(other.pid, signal.SIGKILL)
        assert exit_codes_of([first], tmp_path) == [1]
    drawn = [json.loads(line) for file in tmp_path.glob(samples) for line in file.read_text().splitlines()]
    assert len(drawn) >= 10 and not list(tmp_path.glob("store/sample/*/done*.json"))

    # The second run is started as one process, which starts the other.
    done = warm.run(ROOT / "run.py", [*arguments[:-1], "trainer.devices=2", "hydra.run.dir=out"], tmp_path)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "stored samples are reused" in (tmp_path / "out" / "run.log").read_text()
    assert programs(tmp_path / "out") == programs(alone / "out")
    for rows in programs(tmp_path / "out").values():
        assert len({row[:2] for row in rows}) == len(rows) > 0
    assert results(tmp_path / "out") == results(alone / "out")
    assert json.loads((tmp_path / "out" / "results.json").read_text())["processes"] == 2
    for name in ("policy", "refiner"):
        whole, divided = (load_file(folder / "out" / name / "model.safetensors") for folder in (alone, tmp_path))
        assert all(torch.allclose(whole[key], divided[key], atol=2e-5) for key in whole)
    printed = {f"printed{rank}.{suffix}" for rank in (0, 1) for suffix in ("out", "err")}
    assert {path.name for path in tmp_path.iterdir()} == {"store", "killed", "out"} | printed
    assert not (tmp_path / "printed1.out").read_text()


TRAINING = """
import sys
from dataclasses import replace
from pathlib import Path

from ilf import distributed
from ilf.models.load import load_tokenizer
from ilf.sandbox import Limits, Sandbox
from ilf.components import Component
from ilf.sampling import HFSampler
from ilf.settings import Phase, Settings, Training
from ilf.tasks import mini
from ilf.tasks.mbpp import tasks_from
from ilf.training import ILFModule, UnitTestCallback
from ilf.training.stage_jobs import FineTuning, Model
from ilf.training.mbpp_datamodule import plan_draws
from ilf.types import Refinement

MODEL, folder, names = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3:]

def program():
    tasks = [t for t in tasks_from(mini.rows(), None, "paper")[0] if t.task_id in range(311, 316)]
    tokenizer = load_tokenizer(MODEL)
    targets = [t.code.partition("\\n")[2] + "    # x" * (t.task_id % 2) for t in tasks]
    rows = [Refinement(t.task_id, t.prompt, target, "gold") for t, target in zip(tasks, targets)]
    examples = [ILFModule.example(tokenizer, row, 1024) for row in rows]
    draws = plan_draws([(t, t.prompt) for t in tasks[:3]], "validate", 1, 0)
    phase = Phase(lr=1e-3, epochs=1, batch_size=4)  # the second step has one example, for two processes
    for name in names:
        strategy, adapter = name.split("_")
        own = {"accelerator": "cpu", "strategy": strategy, "precision": "32-true", "gradient_clip_val": 1.0}
        own |= {"log_every_n_steps": 1, "enable_model_summary": False, "num_sanity_val_steps": 0}
        settings = Settings(trainer=Component("pytorch_lightning.Trainer", own), training=Training(policy=phase))
        settings.optimizer = Component("torch.optim.AdamW", {"weight_decay": 0.0})
        batches = {"micro_batch_size": 2, "sampling_batch_size": 2}
        settings.datamodule = Component("ilf.training.MBPPDataModule", batches)
        if adapter == "lora":
            own = {"r": 4, "lora_alpha": 32, "target_modules": "all-linear", "task_type": "CAUSAL_LM"}
            settings.adapter = Component("peft.LoraConfig", own)
        settings.sampler = HFSampler(max_new_tokens=8, batch_size=2)
        (folder / name).mkdir()
        what = {"examples": examples, "validation": examples[:2], "draws": draws}
        job = FineTuning.of(settings, "policy", Model(MODEL, "", "auto", None), **what)
        own = {"tasks": {t.task_id: t for t in tasks}, "sandbox": Sandbox(Limits())}
        facts = distributed.call(job.run, Component("ilf.training.UnitTestCallback", own), folder / name)
        print(name, facts["optimizer_steps"], *(f"{k}={v:.4f}" for k, v in sorted(facts["metrics"].items())))

distributed.lead(program)
"""


def test_training_in_two_processes_matches_training_in_one(tmp_path):
    program, names = tmp_path / "training.py", ["ddp_full", "fsdp_lora"]
    program.write_text(TRAINING)
    done = warm.run(program, [str(MINI), str(tmp_path), "auto_full", "auto_lora"], tmp_path)
    assert done.returncode == 0, done.stderr[-2000:]
    expected = {line.split()[0].split("_")[1]: line.split()[1:] for line in done.stdout.splitlines()}
    assert set(expected) == {"full", "lora"} and expected["full"][0] == "2" and len(expected["full"]) == 4
    with two_processes(program, [str(MINI), str(tmp_path), *names], tmp_path) as processes:
        assert exit_codes_of(processes, tmp_path) == [0, 0], (tmp_path / "printed0.err").read_text()[-3000:]
    lines = [line.split() for line in (tmp_path / "printed0.out").read_text().splitlines()]
    assert [line[0] for line in lines] == names
    base = load_file(MINI / "model.safetensors")
    for name, *facts in lines:
        adapter = name.split("_")[1]
        assert facts == expected[adapter]
        whole, divided = (load_file(tmp_path / n / "model" / "model.safetensors") for n in (f"auto_{adapter}", name))
        assert whole.keys() == divided.keys()
        assert all(torch.allclose(whole[key], divided[key], atol=2e-5) for key in whole)
        assert not all(torch.allclose(base[key], divided[key], atol=2e-4) for key in base)
        assert (tmp_path / name / "model" / "adapter").exists() == (adapter == "lora")


# As many steps as the policy's training would have with an example for every task.
LONG_WARMUP = ["scheduler.num_warmup_steps=8", "training.refiner.epochs=1"]
LONG_WARMUP += ["training.refiner.batch_size=1", "training.policy.batch_size=1"]


@pytest.mark.parametrize(
    ("launcher", "arguments", "message"),
    [
        (as_torchrun, ["sampler.n=0"], "sampler.n=0"),  # before the process group exists
        (as_srun, ["trainer=auto"], "trainer.strategy='auto': is one process, but 2 were started"),
        (
            as_srun,
            ["trainer=ddp", *LONG_WARMUP],
            "scheduler.num_warmup_steps=8: must be from 0",
        ),  # in both processes
        (as_torchrun, ["trainer=ddp", "training.max_length=53", f"refiner.path={MINI}"], "no program is left"),
    ],
)
def test_an_error_in_the_first_process_ends_all_processes(launcher, arguments, message, alone, tmp_path):
    store = f"store.dir={alone / 'store'}"
    local = ["refiner=local"] if arguments[-1].startswith("refiner.path") else []
    words = [*BUDGET, *local, *arguments, store, "hydra.run.dir=out"]
    with two_processes(ROOT / "run.py", words, tmp_path, launcher) as processes:
        assert exit_codes_of(processes, tmp_path) == [1, 1]
    assert f"error: {message}" in (tmp_path / "printed0.err").read_text()
    assert "Traceback" not in (tmp_path / "printed1.err").read_text()


def test_each_job_of_a_sweep_uses_all_cores(tmp_path):
    (tmp_path / "jobs.py").write_text(
        "import torch\n"
        "from ilf import distributed\n"
        "def jobs():\n"
        "    torch.set_num_threads(8)\n"
        "    for processes in (2, 1, 2, 1):\n"
        "        distributed.join('ddp', processes)\n"
        "        print(distributed.call(torch.get_num_threads))\n"
        "distributed.lead(jobs)\n"
    )
    done = warm.run(tmp_path / "jobs.py", [], tmp_path)
    assert done.stdout.split() == ["4", "8", "4", "8"], done.stderr


def ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True)


@pytest.fixture
def machines() -> Iterator[list[str]]:
    """Two network namespaces, ilf0 and ilf1, connected only to each other."""
    if os.geteuid() != 0 or shutil.which("ip") is None:
        pytest.skip("machines of its own need root and the command ip")
    names, ends = ["ilf0", "ilf1"], ["ilfend0", "ilfend1"]
    try:
        for name in names:
            ip("netns", "add", name)
        ip("link", "add", ends[0], "netns", names[0], "type", "veth", "peer", "name", ends[1], "netns", names[1])
        for i, (name, cable) in enumerate(zip(names, ends, strict=True), 1):
            ip("-n", name, "address", "add", f"10.77.0.{i}/24", "dev", cable)
            ip("-n", name, "link", "set", cable, "up")
            ip("-n", name, "link", "set", "lo", "up")
        yield names
    finally:
        for name in names:
            subprocess.run(["ip", "netns", "delete", name], check=False)


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_a_run_on_two_machines_matches_a_run_in_one_process(strategy, machines, alone, tmp_path):
    """torchrun starts one process on each machine, as in the README. The machines share a disk and a network."""
    launch = [sys.executable, "-m", "torch.distributed.run", "--nnodes=2", "--nproc-per-node=1"]
    launch += ["--master-addr=10.77.0.1", "--master-port=29500"]
    words = [str(ROOT / "run.py"), *BUDGET, f"trainer={strategy}", "hydra.run.dir=out"]
    started = []
    for i, name in enumerate(machines):
        own = os.environ | {"GLOO_SOCKET_IFNAME": f"ilfend{i}"}
        command = ["ip", "netns", "exec", name, *launch, f"--node-rank={i}", *words]
        with (tmp_path / f"printed{i}").open("w") as output:
            started.append(subprocess.Popen(command, cwd=tmp_path, env=own, stdout=output, stderr=output))
    try:
        codes = [process.wait(180) for process in started]
    finally:
        for process in started:
            process.kill()
    assert codes == [0, 0], (tmp_path / "printed0").read_text()[-3000:]
    assert programs(tmp_path / "out") == programs(alone / "out")
    assert results(tmp_path / "out") == results(alone / "out")
    assert json.loads((tmp_path / "out" / "results.json").read_text())["processes"] == 2
    assert (tmp_path / "printed1").read_text().count("pass@1") == 0  # only the first process prints results


def test_an_error_in_the_samples_of_one_process_ends_all_processes(tmp_path):
    """Only the longest prompt leaves too few positions, and only the first process samples it."""
    tasks = tasks_from(mini.rows()[10:14], None, "paper")[0]
    lengths = sorted(len(TOKENIZER(task.prompt, add_special_tokens=False).input_ids) for task in tasks)
    assert lengths[-1] > lengths[-2]
    limit = AutoConfig.from_pretrained(MINI).max_position_embeddings - lengths[-1] + 1
    words = [*BUDGET, "trainer=ddp", f"sampler.max_new_tokens={limit}", "stages=[zero_shot]", "hydra.run.dir=out"]
    with two_processes(ROOT / "run.py", words, tmp_path) as processes:
        assert exit_codes_of(processes, tmp_path) == [1, 1]
    assert f"error: sampler.max_new_tokens={limit}" in (tmp_path / "printed0.err").read_text()


@pytest.mark.parametrize(
    ("started", "strategy", "devices", "message"),
    [("2", "auto", None, "2 were started"), ("2", "fsdp", 3, "2 processes were started"), ("1", "ddp", None, "no GPU")],
)
def test_join_rejects_an_unexpected_number_of_processes(started, strategy, devices, message, monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    monkeypatch.setenv("WORLD_SIZE", started)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", started)
    with pytest.raises(InputError, match=message):
        distributed.join(strategy, devices)


TOKENIZER = load_tokenizer(MINI)
TASK = Task(1, "test", "", "", "f", (), "", "def f(x):\n")


@given(st.lists(st.integers(1, 200), min_size=1, max_size=40), st.integers(1, 9), st.integers(1, 8), st.integers(1, 5))
def test_examples_and_draws_are_divided_evenly_among_processes(lengths, batch_size, micro, count):
    examples = [Example(i, (5,) * n, (i + 1, 0)) for i, n in enumerate(lengths)]
    draws = plan_draws([(TASK, TASK.prompt)], "test", len(lengths), 0)
    data = MBPPDataModule(
        TOKENIZER,
        Contents(examples, test_draws=draws),
        batch_size=batch_size,
        micro_batch_size=micro,
        sampling_batch_size=micro,
    )
    shares, sampled = [], []
    for rank in range(count):
        data.trainer = SimpleNamespace(current_epoch=0, global_rank=rank, world_size=count)
        shares.append(list(data.train_dataloader()))
        sampled.append(list(data.test_dataloader()))
    for step in zip(*shares, strict=True):  # equal numbers of steps
        assert len({len(share) for share in step}) == 1  # equal numbers of forward passes
        seen = [
            (int(row[row != -100][0]), float(part["share"]))
            for share in step
            for part in share
            for row in part["labels"]
        ]
        counted = [example for example, weight in seen if weight]
        assert len(set(counted)) == len(counted) <= batch_size
        assert sum(weight for _, weight in seen) == pytest.approx(count)
    assert len({len(batches) for batches in sampled}) == 1
    assert sorted(d.sample for one in sampled for batch in one for d in batch.draws) == list(range(len(lengths)))
    assert all(isinstance(d, Draw) for one in sampled for batch in one for d in batch.draws)


def test_a_process_that_exits_before_connecting_ends_the_run():
    code = (
        f"import sys; sys.path.insert(0, {str(ROOT / 'src')!r})\n"
        "import logging; logging.basicConfig()\n"
        "from ilf import distributed\n"
        "distributed._FOLLOW = 'import sys; sys.exit(3)'\n"
        "distributed._start(2)\n"
        "distributed._control()\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 1 and "exited with code 3 before it connected" in done.stderr


def test_sigterm_ends_all_processes_that_a_run_started(tmp_path):
    arguments = [*BUDGET, "trainer=ddp", "trainer.devices=2", "hydra.run.dir=run"]
    process = warm.start(ROOT / "run.py", arguments, tmp_path, tmp_path / "printed")
    log = tmp_path / "run" / "run.log"
    while process.is_alive() and not (log.exists() and "train_refiner: started" in log.read_text()):
        time.sleep(0.01)
    children = psutil.Process(process.pid).children(recursive=True)
    assert any("follow_parent" in " ".join(child.cmdline()) for child in children)
    os.kill(process.pid, signal.SIGTERM)
    process.join(20)
    assert process.exitcode == 128 + signal.SIGTERM, (tmp_path / "printed.err").read_text()[-2000:]
    _, left = psutil.wait_procs(children, timeout=10)
    assert not left
    assert json.loads((tmp_path / "run" / "results.json").read_text())["status"] == "interrupted"


def test_sigterm_ends_a_process_that_waits_in_a_library_call(tmp_path):
    """Python's signal handlers don't run during such a call, so a thread ends the process."""
    program = tmp_path / "program.py"
    program.write_text(
        "import sys, time\n"
        f"sys.path.insert(0, {str(ROOT / 'src')!r})\n"
        "from ilf import distributed, shutdown\n"
        "def main():\n"
        "    if distributed.rank():\n"
        "        time.sleep(60)\n"
        "    print('waiting', flush=True)\n"
        "    distributed.gather([1])\n"
        "shutdown.command(main, shutdown.explain)\n"
    )
    with two_processes(program, [], tmp_path) as (first, _):
        printed = tmp_path / "printed0.out"
        while first.is_alive() and not (printed.exists() and "waiting" in printed.read_text()):
            time.sleep(0.01)
        time.sleep(2)
        os.kill(first.pid, signal.SIGTERM)
        assert exit_codes_of([first], tmp_path) == [128 + signal.SIGTERM]
        assert "run the same command again to resume" in (tmp_path / "printed0.err").read_text()


def test_sigterm_during_a_destructor_ends_the_process(tmp_path):
    """Python discards exceptions that are raised in `__del__`."""
    program = tmp_path / "program.py"
    program.write_text(
        "import sys, time\n"
        f"sys.path.insert(0, {str(ROOT / 'src')!r})\n"
        "from ilf import shutdown\n"
        "class Slow:\n"
        "    def __del__(self):\n"
        "        print('deleting', flush=True)\n"
        "        time.sleep(1)\n"
        "def main():\n"
        "    Slow()\n"
        "    print('deleted', flush=True)\n"
        "    time.sleep(30)\n"
        "    print('whole', flush=True)\n"
        "shutdown.command(main, shutdown.explain)\n"
    )
    process = warm.start(program, [], tmp_path, tmp_path / "printed")
    printed = tmp_path / "printed.out"
    while process.is_alive() and not (printed.exists() and "deleting" in printed.read_text()):
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGTERM)
    process.join(20)
    assert process.exitcode == 128 + signal.SIGTERM and "whole" not in printed.read_text()
    assert "Exception ignored" not in (tmp_path / "printed.err").read_text()

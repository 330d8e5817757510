"""Unit tests on a Ray cluster, and sweeps with parallel jobs: real clusters, all on this machine."""

import csv
import json
import os
import shlex
import shutil
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from pathlib import Path

import pytest
from conftest import ROOT, compose_settings

from ilf.sandbox import Isolation, Job, Limits, Sandbox
from ilf.types import InputError, Verdict

SWEEP = [
    *("sampler.n=4", "evaluate.k=[1,4]", "data.limit.prompt=2", "data.limit.test=4", "data.limit.refine=16"),
    *("data.limit.train=16", "training.epochs=1", "measure=[]", "store.dir=store", "hydra.sweep.dir=sweep"),
]


def check_sweep(folder: Path, arms: list[str], failed: str, status: str) -> None:
    """Check that a sweep with parallel jobs is complete, and that its jobs shared their common stages."""
    with (folder / "sweep" / "comparison.csv").open() as file:
        rows = {row["arm"]: row for row in csv.DictReader(file)}
    assert [row["status"] for row in rows.values()] == [status] * len(arms) + ["failed"]
    assert set(rows) == {*arms, failed} and failed in rows[failed]["error"]
    assert f"| {rows[failed]['folder']} | {failed}" in (folder / "sweep" / "comparison.md").read_text()
    assert len({rows[arm]["zero_shot_pass@1"] for arm in arms}) == 1
    for stage in ("zero_shot", "sample"):
        (samples,) = (folder / "store" / stage).glob("*/samples.jsonl")
        assert len(set(samples.read_text().splitlines())) == len(samples.read_text().splitlines()) > 0
    logs = [(folder / "sweep" / rows[arm]["folder"] / "run.log").read_text() for arm in arms]
    assert sorted("zero_shot: reused" in log for log in logs) == [False] + [True] * (len(arms) - 1)
    assert all((folder / "sweep" / rows[arm]["folder"] / "wandb").is_dir() for arm in arms)


def free_ports(n: int) -> list[int]:
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(n)]
    ports = [one.getsockname()[1] for one in sockets]
    for one in sockets:
        one.close()
    return ports


@pytest.fixture
def slurm(tmp_path, monkeypatch):
    """A Slurm cluster whose only node is this machine, with its own keys and ports."""
    programs = [
        shutil.which(name, path=f"{os.environ['PATH']}:/usr/sbin") for name in ("munged", "slurmctld", "slurmd")
    ]
    if None in programs or os.geteuid():
        pytest.skip("needs Slurm and root: apt-get install slurm-wlm")
    if not find_spec("submitit"):
        pytest.skip("needs hydra-submitit-launcher: pip install -r requirements-extras.txt")
    folder = tmp_path / "slurm"
    for part in (folder, folder / "state", folder / "spool"):
        part.mkdir()
    (folder / "key").write_bytes(os.urandom(1024))
    (folder / "key").chmod(0o600)
    host, ports = socket.gethostname().split(".")[0], free_ports(2)
    settings = {
        "ClusterName": "test",
        "SlurmctldHost": f"{host}(127.0.0.1)",
        "SlurmUser": "root",
        "SlurmctldPort": ports[0],
        "SlurmdPort": ports[1],
        "AuthInfo": f"socket={folder}/munge.socket",
        "StateSaveLocation": folder / "state",
        "SlurmdSpoolDir": folder / "spool",
        "SlurmctldPidFile": folder / "slurmctld.pid",
        "SlurmdPidFile": folder / "slurmd.pid",
        "ProctrackType": "proctrack/linuxproc",
        "TaskPlugin": "task/none",
        "SelectType": "select/cons_tres",
        "SelectTypeParameters": "CR_CPU",
        "SchedulerParameters": "batch_sched_delay=0,sched_interval=1,bf_interval=1",
        "NodeName": f"{host} NodeAddr=127.0.0.1 CPUs=2 State=UNKNOWN",
        "PartitionName": "main Nodes=ALL Default=YES State=UP",
    }
    (folder / "slurm.conf").write_text("".join(f"{key}={value}\n" for key, value in settings.items()))
    monkeypatch.setenv("SLURM_CONF", str(folder / "slurm.conf"))
    own = [f"--{name}={folder}/munge.{name[:4]}" for name in ("pid-file", "seed-file", "log-file")]
    commands = [
        [programs[0], "--foreground", "--force", f"--key-file={folder}/key", f"--socket={folder}/munge.socket", *own],
        [programs[1], "-D"],
        [programs[2], "-D"],
    ]
    processes = []
    try:
        for command in commands:
            with (folder / f"{Path(command[0]).name}.out").open("w") as output:
                processes.append(subprocess.Popen(command, stdout=output, stderr=output))
        wait_until(lambda: "idle" in subprocess.run(["sinfo", "-h", "-o", "%T"], capture_output=True, text=True).stdout)
        yield
    finally:
        subprocess.run(["scancel", "--full", "-u", "root"], capture_output=True)
        for process in reversed(processes):  # munged last: the others need it to shut down
            process.terminate()
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def wait_until(met, seconds: float = 120) -> None:
    end = time.monotonic() + seconds
    while not met():
        assert time.monotonic() < end, "it did not come to it in time"
        time.sleep(0.1)


# Several verdicts, programs that take longer than others, and a duplicate.
JOBS = [
    *(Job(f"def f(x):\n    return x + {i}\n", (f"assert f(1) == {1 + i % 7}", "assert f(0) >= 0")) for i in range(60)),
    Job("def f(x):\n    while True:\n        pass\n", ("assert f(1) == 1",), gold="def f(x):\n    return x\n"),
    Job("def f(x):\n    return f(x)[0]\n", ("assert f(1) == 1",)),
    Job("def f(:\n", ("assert f(1) == 1",)),
    Job("def f(x):\n    return len(' ' * 2**40)\n", ("assert f(1) == 1",)),
    Job("import os\ndef f(x):\n    os._exit(0)\n", ("assert f(1) == 1",)),
    Job("def f(x):\n    return x + 1\n", ("assert f(1) == 2", "assert f(0) >= 0")),
]


def outcome(verdict: Verdict) -> tuple[object, ...]:
    """Return the parts of a verdict that do not depend on timing."""
    return verdict.verdict, verdict.tests, "" if verdict.verdict == "timed_out" else verdict.detail


@pytest.fixture(scope="module")
def ray_cluster():
    """Two nodes: the first has one processor, the second has two."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        ray = pytest.importorskip("ray", reason="pip install -r requirements-extras.txt")
        from ray.cluster_utils import Cluster

        own = {"object_store_memory": 80 << 20, "include_log_monitor": False}
        cluster = Cluster(True, head_node_args=own | {"num_cpus": 1, "include_dashboard": False, "no_monitor": True})
        try:
            second = cluster.add_node(num_cpus=2, **own)
            yield cluster, second
        finally:
            ray.shutdown()
            cluster.shutdown()


@pytest.mark.slow
def test_cluster_verdicts_match_local_verdicts(ray_cluster):
    from ilf.sandbox.cluster import ClusterSandbox

    local, limits = Sandbox(Limits(time_limit=1)), Limits(time_limit=1, workers=1)
    remote = ClusterSandbox(limits, ray_cluster[0].address)
    assert [outcome(v) for v in remote.run(JOBS)] == [outcome(v) for v in local.run(JOBS)]
    assert {v.verdict for v in local.run(JOBS)} >= {"passed", "failed", "crashed", "timed_out", "memory"}
    assert remote.isolation == local.isolation and remote.run([]) == []
    import ray

    code = ray.get(ray.remote(lambda: __import__("ilf").__file__).remote())
    assert "py_modules" in code  # sent to the nodes, which need not have ilf installed
    with pytest.raises(InputError, match=r"executor\.workers=3.*processors"):
        ClusterSandbox(Limits(workers=3))


def test_the_isolation_report_is_that_of_the_least_isolated_node():
    from ilf.sandbox.cluster import _worse

    whole = Isolation(("user", "network", "seccomp"), {}, ())
    open_ = Isolation(("user", "seccomp"), {"network": "refused"}, ("network",))
    assert _worse(whole, open_) == _worse(open_, whole) == open_ != whole


@pytest.mark.slow
def test_cluster_and_local_runs_share_stages_and_give_equal_results(ray_cluster, small_stages, store):
    few = ["stages=[zero_shot]", "data.limit.test=4"]
    address = f"executor.address={ray_cluster[0].address}"
    there = small_stages(*few, "executor=ray", address).run()
    here = small_stages(*few).run()
    assert here["zero_shot"] == there["zero_shot"] and here["scoring"] == there["scoring"]
    (verdicts,) = (store / "zero_shot").glob("*/verdicts-*.jsonl")
    scored = [json.loads(line) for line in verdicts.read_text().splitlines()]
    apart = small_stages(*few, f"store.dir={store}2")
    apart.run()
    (verdicts,) = store.with_name("store2").glob("zero_shot/*/verdicts-*.jsonl")
    assert [{**row, "seconds": 0} for row in scored] == [
        {**json.loads(line), "seconds": 0} for line in verdicts.read_text().splitlines()
    ]


@pytest.mark.slow
def test_losing_a_node_loses_no_verdicts_unless_no_suitable_node_is_left(ray_cluster):
    from ilf.sandbox.cluster import ClusterSandbox

    cluster, second = ray_cluster
    slow = "import time\ndef f(x):\n    time.sleep(0.15)\n    return x + {}\n"
    jobs = [Job(slow.format(i), (f"assert f(1) == {1 + i % 2}",)) for i in range(90)]
    remote, wide = ClusterSandbox(Limits(workers=1), cluster.address), ClusterSandbox(Limits(workers=2))
    (raylet,) = [p[0].process.pid for kind, p in second.all_processes.items() if kind == "raylet"]
    with ThreadPoolExecutor() as pool:
        whole = pool.submit(lambda: list(remote._execute(jobs)))
        wait_until(lambda: "_judge" in processes_of(raylet))
        ending = pool.submit(wide.run, jobs)  # needs two processors
        cluster.remove_node(second, allow_graceful=False)
        verdicts = whole.result(120)
        assert sorted(place for place, _ in verdicts) == list(range(90))
        assert all(v.passed == (place in (0, 1)) for place, v in verdicts)
        with pytest.raises(RuntimeError, match=r"no node of the Ray cluster is left with 2 processors.*ray start"):
            ending.result(120)
    assert "ilf/sandbox" not in processes_of(raylet)


def processes_of(parent: int) -> str:
    """Return the command lines of a process's descendants."""
    lines = subprocess.run(["ps", "-eo", "pid=,ppid=,args="], capture_output=True, text=True).stdout.splitlines()
    rows = [(int(pid), int(above), args) for pid, above, args in (line.split(None, 2) for line in lines)]
    found, commands = {parent}, []
    for _ in range(4):  # generations
        commands += [args for pid, above, args in rows if above in found and pid not in found]
        found |= {pid for pid, above, _ in rows if above in found}
    return "\n".join(commands)


def test_an_unreachable_cluster_is_reported_at_startup(small_stages):
    pytest.importorskip("ray", reason="pip install -r requirements-extras.txt")
    import ray

    ray.shutdown()  # otherwise the connection of an earlier test would be used
    with pytest.raises(InputError, match=r"executor\.address='127\.0\.0\.1:1'.*ray start"):
        small_stages("executor=ray", "executor.address=127.0.0.1:1")


def test_a_missing_ray_package_is_reported(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(InputError, match=r"executor='ray'.*requirements-extras\.txt"):
        compose_settings("executor=ray")


def test_an_argument_of_another_executor_is_rejected():
    with pytest.raises(InputError, match=r"executor\.address=.h:1..*is not an argument"):
        compose_settings("+executor.address=h:1")


@pytest.mark.slow
def test_a_sweep_with_joblib_shares_stages_and_reports_all_jobs(tmp_path):
    pytest.importorskip("hydra_plugins.hydra_joblib_launcher", reason="pip install -r requirements-extras.txt")
    launcher = ["hydra/launcher=processes", "hydra.launcher.n_jobs=2", "stages=[sample,zero_shot,annotate]"]
    command = [sys.executable, ROOT / "run.py", "-m", *launcher, "refinements=gold,none,human", "feedback=unit_tests"]
    # Not started by the fork server, whose order of shutdown does not suit joblib's workers.
    done = subprocess.run([*command, *SWEEP], cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert done.returncode != 0 and "refinements='human'" in done.stderr  # an arm that is invalid with unit_tests
    check_sweep(tmp_path, ["gold", "none"], "human", "partial")


@pytest.mark.slow
def test_a_sweep_with_slurm_shares_stages_and_reports_all_jobs(slurm, cli, tmp_path):
    small = [f"hydra.launcher.{key}" for key in ("gpus_per_node=null", "mem_gb=null", "cpus_per_task=1")]
    launcher = ["hydra/launcher=slurm", *small]
    done = cli("-m", *launcher, "refinements=gold,none,human", "feedback=unit_tests", *SWEEP)
    assert done.returncode != 0 and "refinements='human'" in done.stderr
    check_sweep(tmp_path, ["gold", "none"], "human", "complete")
    scripts = list((tmp_path / "sweep" / ".submitit").glob("*/*submission.sh"))
    assert scripts and "#SBATCH" in scripts[0].read_text()


@pytest.mark.slow
def test_a_slurm_job_resumes_after_sigusr1_and_requeueing(slurm, tmp_path):
    arguments = [*SWEEP[:-1], "logger=none", "hydra.run.dir=run", "sampler.n=10", "data.limit.train=300"]
    script = tmp_path / "job.sh"
    command = " ".join([sys.executable, str(ROOT / "run.py"), *map(shlex.quote, arguments)])
    script.write_text(f"#!/bin/sh\n#SBATCH --requeue --open-mode=append --output=job.out\nexec {command}\n")
    done = subprocess.run(["sbatch", "--parsable", script], cwd=tmp_path, capture_output=True, text=True, check=True)
    job = done.stdout.strip()
    log, output = tmp_path / "run" / "run.log", tmp_path / "job.out"
    wait_until(lambda: log.exists() and "sample: 1 of" in log.read_text(), 200)
    subprocess.run(["scancel", "--batch", "--signal=USR1", job], check=True)
    wait_until(lambda: "stopped by SIGUSR1" in output.read_text() and "PENDING" in job_state(job), 30)
    assert json.loads((tmp_path / "run" / "results.json").read_text())["status"] == "interrupted"
    subprocess.run(["scontrol", "update", f"jobid={job}", "starttime=now"], check=True)  # or it waits two minutes
    wait_until(lambda: "COMPLETED" in job_state(job), 300)
    assert json.loads((tmp_path / "run" / "results.json").read_text())["status"] == "complete"
    assert "zero_shot: reused" in log.read_text() and "stored samples are reused" in log.read_text()


def job_state(job: str) -> str:
    return subprocess.run(["scontrol", "show", "job", job], capture_output=True, text=True).stdout

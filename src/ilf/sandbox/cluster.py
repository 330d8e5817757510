"""A sandbox that runs programs on the nodes of a Ray cluster, where each node has an ordinary sandbox."""

from __future__ import annotations

import functools
import logging
import os
import socket
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import ray
from ray.exceptions import RayError, RayTaskError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from ilf.sandbox.executor import Sandbox
from ilf.sandbox.jobs import Job, Limits
from ilf.sandbox.probe import Isolation
from ilf.types import InputError, Verdict

_BATCH = 16  # maximum programs per Ray task: with this many, the overhead of the task is small
_SHARE = 4  # minimum tasks per slot of the cluster, if there are enough programs, so that all nodes finish together
_PATIENCE = 5.0  # seconds without an answer after which we check whether a node is left
_CONNECT = 10.0  # seconds
_Answer = tuple[list[Verdict], Isolation]
_START = "start nodes with `ray start --address=HOST:PORT --num-cpus=N`"


class ClusterSandbox(Sandbox):
    """Executes jobs on all nodes of a Ray cluster that have enough processors.

    A Ray task reserves `limits.workers` processors, executes that many programs at once, and frees the processors. If a
    node dies, Ray runs its tasks on other nodes. Each node needs Ray and the same Python version; this package is sent
    to it. On each node, `Sandbox` isolates the programs. Where it leaves the network open, programs can reach Ray too.

    Args:
        limits: What each program may use.
        address: HOST:PORT of a cluster that this machine is a node of. With None, the cluster that $RAY_ADDRESS names
            or that runs on this machine is used; if there is none, one is started for this process. If the process is
            already connected to a cluster, that connection is used.

    Raises:
        InputError: The cluster cannot be reached, no node has enough processors, or isolation is required and a node
            leaves something open.
    """

    def __init__(self, limits: Limits, address: str | None = None) -> None:
        self._connected = not ray.is_initialized()
        if self._connected:
            _connect(address)
        try:
            nodes = _nodes(limits)
            if not nodes:
                raise InputError(
                    "executor.workers",
                    limits.workers,
                    "no node of the Ray cluster has this many processors",
                    f"Give fewer workers, or {_START}.",
                )
            self._judge = ray.remote(num_cpus=limits.workers)(_judge)
            on = [NodeAffinitySchedulingStrategy(node, soft=True) for node in nodes]
            asked = [self._judge.options(num_cpus=0, scheduling_strategy=one).remote(limits, []) for one in on]
            self.isolation = functools.reduce(_worse, (_get(one)[1] for one in asked))
            super().__init__(limits)
        except BaseException:
            self.close()
            raise

    def __reduce__(self) -> tuple[type[Sandbox], tuple[Limits, str]]:  # type: ignore[override]
        """Pickle the sandbox so that another process opens its own connection to the same cluster."""
        return ClusterSandbox, (self.limits, ray.get_runtime_context().gcs_address)

    def close(self) -> None:
        """Disconnect from the cluster. A cluster that was started for this process is stopped."""
        if self._connected:
            ray.shutdown()

    def _execute(self, jobs: Sequence[Job]) -> Iterator[tuple[int, Verdict]]:
        size = max(1, min(_BATCH, len(jobs) // max(1, _SHARE * sum(_nodes(self.limits).values()))))
        # `Sandbox.run` of this process measures gold programs and extends time limits, once for all nodes.
        own = [replace(job, gold="") for job in jobs]
        places = {
            self._judge.remote(self.limits, own[start : start + size]): range(start, min(start + size, len(jobs)))
            for start in range(0, len(jobs), size)
        }
        waiting = list(places)
        try:
            while waiting:
                done, waiting = ray.wait(waiting, timeout=_PATIENCE)
                if not done and not _nodes(self.limits):
                    raise RuntimeError(
                        f"no node of the Ray cluster is left with {self.limits.workers} processors to execute "
                        f"programs: {_START}, and run the same command again; finished work is saved and reused"
                    )
                for task in done:
                    verdicts, isolation = _get(task)
                    self.isolation = _worse(self.isolation, isolation)  # a node may have joined
                    yield from zip(places[task], verdicts, strict=True)
        finally:
            for task in waiting:
                ray.cancel(task)


def _judge(limits: Limits, jobs: list[Job]) -> _Answer:
    """Execute jobs on the node that runs this Ray task; return the verdicts and the isolation of that node."""
    sandbox = _sandbox(limits)
    return sandbox.run(jobs), sandbox.isolation


@functools.cache
def _sandbox(limits: Limits) -> Sandbox:
    """Return the sandbox of a Ray worker process, which is reused by all tasks of that process."""
    return Sandbox(limits)


def _connect(address: str | None) -> None:
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # else a cluster that starts here sends usage statistics
    named = address or os.environ.get("RAY_ADDRESS")
    package = Path(__file__).parent.parent
    try:
        if named and ":" in named:  # fails fast: Ray itself would retry for minutes
            host, _, port = named.rpartition(":")
            socket.create_connection((host, int(port)), timeout=_CONNECT).close()
        ray.init(
            named,
            include_dashboard=False,
            log_to_driver=False,
            logging_level=logging.WARNING,
            runtime_env={"py_modules": [str(package)], "excludes": ["*.safetensors"]},
        )
    except (OSError, ValueError) as error:
        raise InputError(
            "executor.address",
            named,
            f"no Ray cluster answers at this address: {error}",
            "Give HOST:PORT of a cluster that this machine is a node of, as `ray start --head` prints it, or null for "
            "a cluster of this machine alone.",
        ) from error


def _nodes(limits: Limits) -> dict[str, int]:
    """Return how many tasks each node of the cluster can run at once, without the nodes that can run none."""
    alive = [node for node in ray.nodes() if node["Alive"]]  # type: ignore[no-untyped-call, unused-ignore]
    processors = {node["NodeID"]: node["Resources"].get("CPU", 0) for node in alive}
    return {node: tasks for node, n in processors.items() if (tasks := int(n // limits.workers))}


def _get(task: ray.ObjectRef[_Answer]) -> _Answer:
    try:
        answer: _Answer = ray.get(task)
        return answer
    except RayTaskError as error:
        raise error.cause from None  # the exception that the node's sandbox raised
    except RayError as error:
        raise RuntimeError(
            "the Ray cluster could not execute a batch of programs, although it tried each time on another worker: "
            "see the cause above. Run the same command again; finished work is saved and reused"
        ) from error


def _worse(one: Isolation, other: Isolation) -> Isolation:
    """Return the isolation that holds on both nodes: the mechanisms that both have, and what either leaves open."""
    both = tuple(name for name in one.mechanisms if name in other.mechanisms)
    return Isolation(both, one.refused | other.refused, tuple(dict.fromkeys(one.open + other.open)))

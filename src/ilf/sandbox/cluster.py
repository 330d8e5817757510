"""A sandbox whose programs run on the machines of a Ray cluster, each in an ordinary sandbox of that machine."""

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

_BATCH = 16  # programs in a task, at most: what handing it over costs is then little beside them
_SHARE = 4  # tasks for each that can run at once, at least where there are as many programs: so that all end together
_PATIENCE = 5.0  # seconds without an answer after which we look whether a node is left
_CONNECT = 10.0  # seconds
_Answer = tuple[list[Verdict], Isolation]
_START = "start nodes with `ray start --address=HOST:PORT --num-cpus=N`"


class ClusterSandbox(Sandbox):
    """Executes jobs on all nodes of a Ray cluster that have processors to give.

    A task takes `limits.workers` processors, executes as many programs at once, and frees them. What a dead node was
    executing, Ray gives to others. Nodes need Ray and the same Python, and get this package from here. Programs are
    kept from each node as `Sandbox` keeps them from this machine; where that leaves the network open, they reach Ray
    too.

    Args:
        limits: What each program may use.
        address: HOST:PORT of the cluster that this machine is a node of. None takes the one that $RAY_ADDRESS names or
            that runs on this machine, else starts one for this process. A connection that the process has already is
            used as it is.

    Raises:
        InputError: The cluster can't be reached or has no processors to give, or isolation is required and a node
            leaves something open.
    """

    def __init__(self, limits: Limits, address: str | None = None) -> None:
        self._connected = not ray.is_initialized()
        if self._connected:
            _connect(address)
        nodes = _nodes(limits)
        if not nodes:
            raise InputError(
                "executor.workers",
                limits.workers,
                "no node of the Ray cluster has so many processors",
                f"Lower it, or {_START}.",
            )
        self._judge = ray.remote(num_cpus=limits.workers)(_judge)
        on = [NodeAffinitySchedulingStrategy(node, soft=True) for node in nodes]
        asked = [self._judge.options(num_cpus=0, scheduling_strategy=one).remote(limits, []) for one in on]
        self.isolation = functools.reduce(_worse, (_get(one)[1] for one in asked))
        super().__init__(limits)

    def __reduce__(self) -> tuple[type[Sandbox], tuple[Limits, str]]:  # type: ignore[override]
        """Give another process a connection of its own to the same cluster."""
        return ClusterSandbox, (self.limits, ray.get_runtime_context().gcs_address)

    def close(self) -> None:
        """Leave the cluster, and end it where it was started for this process."""
        if self._connected:
            ray.shutdown()

    def _execute(self, jobs: Sequence[Job]) -> Iterator[tuple[int, Verdict]]:
        size = max(1, min(_BATCH, len(jobs) // max(1, _SHARE * sum(_nodes(self.limits).values()))))
        # What a program may take beyond the limit is found out here, once for all nodes.
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
                        f"programs: {_START}, and run the same command again; what is finished is kept"
                    )
                for task in done:
                    verdicts, isolation = _get(task)
                    self.isolation = _worse(self.isolation, isolation)  # a node may have joined
                    yield from zip(places[task], verdicts, strict=True)
        finally:
            for task in waiting:
                ray.cancel(task)


def _judge(limits: Limits, jobs: list[Job]) -> _Answer:
    """Execute jobs on the node that this is called on; return verdicts, and how that node isolates."""
    sandbox = _sandbox(limits)
    return sandbox.run(jobs), sandbox.isolation


@functools.cache
def _sandbox(limits: Limits) -> Sandbox:
    """Return the one sandbox of a process of Ray's, which serves task after task."""
    return Sandbox(limits)


def _connect(address: str | None) -> None:
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # of a cluster that starts here: it would call home
    named = address or os.environ.get("RAY_ADDRESS")
    package = Path(__file__).parent.parent
    try:
        if named and ":" in named:  # Ray itself would try for minutes
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
            f"no Ray cluster answers there: {error}",
            "Give HOST:PORT of one that this machine is a node of, as `ray start --head` prints it, or null for one of "
            "this machine alone.",
        ) from error


def _nodes(limits: Limits) -> dict[str, int]:
    """Return how many tasks each node of the cluster can do at once, without those that can do none."""
    alive = [node for node in ray.nodes() if node["Alive"]]  # type: ignore[no-untyped-call, unused-ignore]
    processors = {node["NodeID"]: node["Resources"].get("CPU", 0) for node in alive}
    return {node: tasks for node, n in processors.items() if (tasks := int(n // limits.workers))}


def _get(task: ray.ObjectRef[_Answer]) -> _Answer:
    try:
        answer: _Answer = ray.get(task)
        return answer
    except RayTaskError as error:
        raise error.cause from None  # as the node's sandbox raised it
    except RayError as error:
        raise RuntimeError(
            "the Ray cluster could not execute a batch of programs, each of its tries on another worker: see the "
            "cause above. Run the same command again; what is finished is kept"
        ) from error


def _worse(one: Isolation, other: Isolation) -> Isolation:
    """Return what holds on both of two nodes: the mechanisms of both, and what either leaves open."""
    both = tuple(name for name in one.mechanisms if name in other.mechanisms)
    return Isolation(both, one.refused | other.refused, tuple(dict.fromkeys(one.open + other.open)))

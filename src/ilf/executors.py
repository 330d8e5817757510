"""The options of the group `executor`: where a run executes programs, and by which rules."""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from importlib.util import find_spec
from typing import Annotated, Any, ClassVar, Literal, Protocol

from annotated_types import Gt, Le

from ilf.ranges import Mebibytes, Positive
from ilf.sandbox import Isolation, Job, Limits, Sandbox
from ilf.sandbox.jobs import cores
from ilf.sandbox.packages import find
from ilf.types import InputError, Verdict

_log = logging.getLogger(__name__)


class Judge(Protocol):
    """Judges programs by executing them. An executor starts it."""

    @property
    def isolation(self) -> Isolation:
        """How programs are isolated from the machine."""

    def run(self, jobs: Sequence[Job]) -> list[Verdict]:
        """Return a verdict for each job, in order."""

    def close(self) -> None:
        """Stop all that was started."""


@dataclass(frozen=True)
class Executor(ABC):
    """Executes programs on their unit tests. To write your own executor, derive from this class.

    Args:
        tests: Which tests decide: all; unseen, which leaves out the assert or input that the prompt shows; or
            challenge, which uses the challenge tests of MBPP tasks that have them, in place of the others.
        scoring: How Test is scored: as_written, or paper, which re-indents and truncates as the authors' code does.
        compare: How results are compared: exact, or approx, which compares numbers as pytest.approx does.
        trust_eq: Whether objects of the program's own classes decide equality, by their `__eq__` and other operators.
        isolation: require (an error if this machine can't provide complete isolation), best, or off.
        time_limit: Maximum processor time per program, in seconds.
        memory_mb: Maximum memory per program, in MiB.
        output_mb: Maximum size of any one file, in MiB, including standard output.
        disk_mb: Maximum size of all files of a program, in MiB.
        workers: Number of programs executed concurrently.
        packages: Packages that programs and tests may import besides the standard library, by import name or
            distribution name. Their dependencies are included. They must be installed in the environment of ILF.
    """

    tests: Literal["all", "unseen", "challenge"] = "all"
    scoring: Literal["as_written", "paper"] = "as_written"
    compare: Literal["exact", "approx"] = "exact"
    trust_eq: bool = False
    isolation: Literal["require", "best", "off"] = "best"
    time_limit: Annotated[float, Gt(0), Le(3600)] = 5.0
    memory_mb: Mebibytes = 1024
    output_mb: Mebibytes = 16
    disk_mb: Mebibytes = 64
    workers: Positive = 2
    packages: tuple[str, ...] = ()

    changes_nothing: ClassVar[tuple[str, ...]] = ("workers",)  # settings that no verdict depends on

    @property
    def limits(self) -> Limits:
        """The resource limits of each program."""
        return Limits(**{one.name: getattr(self, one.name) for one in fields(Limits)})

    @property
    def rules(self) -> dict[str, Any]:
        """All settings that a verdict depends on, besides program and tests. Packages are given with their versions."""
        named = {name: value for name, value in asdict(self).items() if name not in self.changes_nothing}
        return named | {"packages": find(self.packages).versions}

    @abstractmethod
    def start(self) -> Judge:
        """Return the judge that executes programs. Raises InputError if it can't be started."""

    def check(self) -> None:
        """Raise InputError if something that the executor needs is missing. This runs before anything loads."""
        find(self.packages)


@dataclass(frozen=True)
class LocalExecutor(Executor):
    """Executes programs in a sandbox on this machine."""

    def check(self) -> None:
        """Raise InputError if one of `packages` is missing. Log a warning if there are more workers than processors."""
        super().check()
        if self.workers > (most := cores()):
            said = "this process may use %d processors, so correct programs can exceed their time limit"
            _log.warning(f"executor.workers=%d: {said}. Use executor.workers=%d.", self.workers, most, most)

    def start(self) -> Judge:
        """Return a sandbox on this machine."""
        return Sandbox(self.limits)


@dataclass(frozen=True)
class RayExecutor(Executor):
    """Executes programs in sandboxes on the nodes of a Ray cluster. `workers` is the number of CPUs per Ray task."""

    workers: Positive = 1
    # HOST:PORT of the cluster; null for the cluster of this machine, or else a new one on this machine alone
    address: str | None = None

    changes_nothing = ("workers", "address")

    def check(self) -> None:
        """Raise InputError if the package ray or one of `packages` is missing."""
        super().check()
        if find_spec("ray") is None:
            advice = "pip install -r requirements-extras.txt, or use executor=sandbox."
            raise InputError("executor", "ray", "needs the package ray", advice)

    def start(self) -> Judge:
        """Return the sandbox on the cluster. Raises InputError if the cluster can't be reached."""
        from ilf.sandbox.cluster import ClusterSandbox

        return ClusterSandbox(self.limits, self.address)

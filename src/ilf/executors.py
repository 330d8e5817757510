"""Where a run executes programs, and by which rules: the options of the group `executor`."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from importlib.util import find_spec
from typing import Annotated, Any, ClassVar, Literal, Protocol

from annotated_types import Gt, Le

from ilf.ranges import Mebibytes, Positive
from ilf.sandbox import Isolation, Job, Limits, Sandbox
from ilf.sandbox.packages import find
from ilf.types import InputError, Verdict


class Judge(Protocol):
    """What an executor starts."""

    @property
    def isolation(self) -> Isolation:
        """How programs are kept from the machine."""

    def run(self, jobs: Sequence[Job]) -> list[Verdict]:
        """Return a verdict for each job, in order."""

    def close(self) -> None:
        """End what was started."""


@dataclass(frozen=True)
class Executor(ABC):
    """Executes programs on their unit tests. Derive from it for an executor of your own.

    Args:
        tests: all; unseen: without the assert, or the input, that the prompt shows; challenge: where a task of MBPP has
            challenge tests, those in place of the others.
        scoring: How Test is scored: as_written, or paper: re-indented and cut as the authors' code does.
        compare: exact, or approx: numbers as pytest.approx.
        trust_eq: Whether an object of the program's own class says what it equals, by its own `__eq__` and operators.
        isolation: require (an error where this machine leaves something open), best or off.
        time_limit: Seconds of processor time of a program.
        memory_mb: MiB of memory of a program.
        output_mb: MiB in any one file, standard output included.
        disk_mb: MiB in all its files.
        workers: Programs at once.
        packages: What programs and tests may import besides the standard library, by the name that one imports or
            installs; what these need comes with them. They must be installed beside us.
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

    changes_nothing: ClassVar[tuple[str, ...]] = ("workers",)  # what no verdict depends on

    @property
    def limits(self) -> Limits:
        """What each program may use."""
        return Limits(**{one.name: getattr(self, one.name) for one in fields(Limits)})

    @property
    def rules(self) -> dict[str, Any]:
        """All that a verdict depends on, besides program and tests: of packages the versions."""
        named = {name: value for name, value in asdict(self).items() if name not in self.changes_nothing}
        return named | {"packages": find(self.packages).versions}

    @abstractmethod
    def start(self) -> Judge:
        """Return what executes programs. Raises InputError where it can't be had."""

    def check(self) -> None:
        """Raise InputError where something that the executor needs is not there, before anything loads."""
        find(self.packages)


@dataclass(frozen=True)
class LocalExecutor(Executor):
    """Executes programs in a sandbox on this machine."""

    def start(self) -> Judge:
        """Return the sandbox."""
        return Sandbox(self.limits)


@dataclass(frozen=True)
class RayExecutor(Executor):
    """Executes programs in sandboxes on the nodes of a Ray cluster; `workers` are the processors of a task."""

    workers: Positive = 1
    address: str | None = None  # HOST:PORT of the cluster; null: the one this machine is of, else one of it alone

    changes_nothing = ("workers", "address")

    def check(self) -> None:
        """Raise InputError where the package ray or one of `packages` is missing."""
        super().check()
        if find_spec("ray") is None:
            advice = "pip install -r requirements-extras.txt, or use executor=sandbox."
            raise InputError("executor", "ray", "needs the package ray", advice)

    def start(self) -> Judge:
        """Return the cluster's sandbox. Raises InputError where the cluster can't be reached."""
        from ilf.sandbox.cluster import ClusterSandbox

        return ClusterSandbox(self.limits, self.address)

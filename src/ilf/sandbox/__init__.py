r"""Programs + tests -> verdicts, safely and fast. Knows nothing of models and may be used alone.

    from ilf.sandbox import Job, Limits, Sandbox

    sandbox = Sandbox(Limits(time_limit=5))
    print(sandbox.isolation)
    sandbox.run([Job("def f(x):\n    return x", ("assert f(1) == 1",))])

or `python -m ilf.sandbox FILE`. A program that reads and writes has inputs and outputs in place of tests, and is run
once for each: `Job("print(int(input()) * 2)", inputs=("1", "2"), outputs=("2", "4"))`.

    jobs.py       what is handed in: programs with tests, and limits
    packages.py   which installed packages programs may import, with what these need
    executor.py   hands jobs to workers, and outlives whatever happens to them
    processes.py  worker processes, as the executor sees them
    worker/       a judge, which holds the tests, and the programs, each a fork of a warm interpreter
    rewards.py    verdicts as rewards, for TRL's trainers
    cluster.py    the same on the nodes of a Ray cluster, each with a sandbox of its own; the only file that needs Ray
    probe.py      tries to get out, and says what is open on this machine

**A verdict can't be forged**, since tests are never in the program's process: the judge asks for calls and compares
what they return. Only plain data and values of the standard library cross, and are read without running code. An
object of the program's own class stays there: a data class is compared by its fields, a member of an enumeration by its
name, one that has no `__eq__` with itself, and one with its own is not compared at all. Exits, printed markers,
patched builtins, equality tricks, frames, traces and descriptors lead nowhere. What a script
has written the judge reads itself, once the process has ended.

**Nothing gets out**, on Linux without root: programs live in namespaces of their own (user, network, mount, process,
IPC), with a root that holds the interpreter's libraries, read-only, and one empty folder in memory; Landlock says the
same of files again; seccomp leaves an allow-list of system calls, with threads but no processes. Limits bound
processor and wall time, memory, threads, descriptors, output and disk. What a machine refuses is left out:
`Sandbox.isolation` names it.

Not covered:

- A program may answer calls in any way it likes, and sees the calls of all its tests before it answers the first.
  What it can't see is what is expected.
- Tests are trusted. The judge runs them outside this isolation, with the modules of the library that do nothing but
  compute and without `open`, `exec` and the like. Set-up code runs in the program's process: a test that hands it the
  expected value shows it to the program.
- Tests are assert statements, or whatever else raises where the program is wrong: functions `test_...` as pytest
  finds them (with `raises`, `approx`, `parametrize`, `capsys` and fixtures of their own) and classes of unittest are
  run. What the judge can't decide is "unsupported_test", with what was asked for: an object with an `__eq__` or an
  operator of its own beside the test's data (`Limits(trust_eq=True)` lets it answer), a module that reads files or
  starts processes, a mock of what the program calls.
- The clock, the kernel's version and the interpreter's libraries can be seen. Errors in the kernel, and side channels
  of the processor, are beyond it. cgroups are not used.
- Elsewhere than on Linux (x86_64, aarch64) only limits and the judge hold: run untrusted models in a container.

Programs see the standard library and the packages that `Limits.packages` names, by default none, a fixed hash seed and
fixed random numbers, so that a verdict depends neither on what else is installed beside us nor on chance.

**Packages** are imported once, before programs are forked, and can be read, not written. Values of numpy and pandas
cross as type, shape and bytes, never pickled; what is no number, text or time, or of a derived type, stays in the
program. Tests compute with packages, but what opens files or runs data as code is refused (worker/packages.py).
"""

from ilf.sandbox.executor import Sandbox
from ilf.sandbox.jobs import Job, Limits
from ilf.sandbox.probe import Isolation
from ilf.sandbox.rewards import Reward, reward

__all__ = ["Isolation", "Job", "Limits", "Reward", "Sandbox", "reward"]

r"""Execute programs against tests, fast and in isolation, and return verdicts.

The package does not depend on any model and can be used on its own:

    from ilf.sandbox import Job, Limits, Sandbox

    sandbox = Sandbox(Limits(time_limit=5))
    print(sandbox.isolation)
    sandbox.run([Job("def f(x):\n    return x", ("assert f(1) == 1",))])

The command is `python -m ilf.sandbox FILE`. A program that reads standard input and writes standard output has inputs
and outputs instead of tests, and is run once for each input: `Job("print(int(input()) * 2)", inputs=("1", "2"),
outputs=("2", "4"))`.

    jobs.py       what a sandbox is given: programs with tests, and limits
    packages.py   finds the installed packages that programs may import, and their dependencies
    executor.py   assigns jobs to workers, and survives whatever happens to a worker
    processes.py  worker processes, as the executor sees them
    worker/       the judge, which holds the tests, and the programs, each a fork of a warm interpreter
    rewards.py    returns verdicts as rewards, for TRL's trainers
    cluster.py    executes jobs on the nodes of a Ray cluster, each with its own sandbox; the only file that needs Ray
    probe.py      tries to break out of the sandbox, and reports what this machine leaves open

**A program cannot forge a verdict**, because tests are never in the program's process. The judge asks the program for
calls and compares what they return. Only plain data and values of the standard library cross between the processes,
and reading them runs no code. An object of the program's own class stays in the program. The judge compares a data
class by its fields, a member of an enumeration by its name, and an object without an `__eq__` by identity. It does not
compare an object whose class defines an `__eq__` of its own. Exits, printed markers, patched builtins, equality tricks,
frames, traces and descriptors do not help a program to pass. The judge itself reads what a script has written, after
the process has ended.

**A program cannot break out**, on Linux and without root. Programs run in their own namespaces (user, network, mount,
process, IPC). Their root file system holds the interpreter's libraries, read-only, and one empty folder in memory.
Landlock enforces the same rules for files a second time. seccomp allows only listed system calls, which permit threads
but no processes. Limits bound processor time, wall time, memory, threads, descriptors, output and disk. A mechanism
that the machine refuses is left out, and `Sandbox.isolation` names it.

Not covered:

- A program may answer calls in any way it likes, and sees the calls of all its tests before it answers the first one.
  It cannot see the expected values.
- Tests are trusted. The judge runs them outside this isolation, with only those modules of the standard library that do
  nothing but compute, and without `open`, `exec` and similar functions. Set-up code runs in the program's process: a
  test that passes the expected value to set-up code shows it to the program.
- Tests are assert statements, or other statements that raise when the program is incorrect. Functions `test_...` as
  pytest collects them (with `raises`, `approx`, `parametrize`, `capsys` and their own fixtures) and classes of unittest
  are run. A test that the judge cannot decide is "unsupported_test", and the detail says what the test asked for: an
  object with its own `__eq__` or operator beside the test's data (`Limits(trust_eq=True)` lets the object answer), a
  module that reads files or starts processes, or a mock of what the program calls.
- Programs can see the clock, the kernel's version and the interpreter's libraries. The sandbox does not protect against
  errors in the kernel or side channels of the processor. It does not use cgroups.
- On systems other than Linux (x86_64, aarch64), only the limits and the judge protect: run untrusted models in a
  container.

Programs see the standard library and the packages that `Limits.packages` names (by default none), a fixed hash seed and
fixed random numbers. A verdict therefore depends neither on what else is installed in this environment nor on chance.

**Packages** are imported once, before programs are forked. Programs can read their files but not write them. Values of
numpy and pandas cross as type, shape and bytes, and are never pickled. A value that is not a number, text or time, or
that is of a derived type, stays in the program. Tests compute with packages, but a call that opens files or runs data
as code is refused (worker/packages.py).
"""

from ilf.sandbox.executor import Sandbox
from ilf.sandbox.jobs import Job, Limits
from ilf.sandbox.probe import Isolation
from ilf.sandbox.rewards import Reward, reward

__all__ = ["Isolation", "Job", "Limits", "Reward", "Sandbox", "reward"]

r"""Programs + tests -> verdicts. Knows nothing of models and may be used alone.

from ilf.sandbox import Job, Limits, Sandbox
Sandbox(Limits()).run([Job("def f(x):\n    return x", ("assert f(1) == 1",))])
"""

from ilf.sandbox.executor import Job, Limits, Sandbox

__all__ = ["Job", "Limits", "Sandbox"]

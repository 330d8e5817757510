"""Measures the seconds to the first sample, and the share of a run that is not sampling, training or executing.

    python benchmarks/overhead.py                      # the default run
    python benchmarks/overhead.py sampler.n=4 -- 3     # other overrides, 3 times

Each run is a process of its own with an empty store. Sampling is the time in the sampler, training the time in
Lightning's fit, and executing the time in the sandbox. The rest is the overhead, and `share` is its share of the run:
loading, planning, files, tracking, plots, and `imports`, the seconds it takes to import torch, transformers, Lightning,
W&B and matplotlib. The last line of output is one JSON object.
"""

import json
import runpy
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
_CHILD = "--measured"


def measured(started: float, output: str, arguments: list[str]) -> None:
    """Run run.py in this process, and write the seconds of each kind of work to a file."""
    sys.path.insert(0, str(ROOT / "src"))
    start = time.monotonic()
    import matplotlib.pyplot  # noqa: F401
    import pytorch_lightning as pl
    import transformers  # noqa: F401
    import wandb  # noqa: F401

    imports = time.monotonic() - start
    from ilf.sampling import HFSampler
    from ilf.sandbox import Sandbox

    seconds = {"sampling": 0.0, "training": 0.0, "executing": 0.0, "first_sample": 0.0, "imports": imports}

    def timed(owner: Any, name: str, kind: str) -> None:
        inner: Callable[..., Any] = getattr(owner, name)

        def call(*args: Any, **kwargs: Any) -> Any:
            start = time.monotonic()
            try:
                return inner(*args, **kwargs)
            finally:
                seconds[kind] += time.monotonic() - start

        setattr(owner, name, call)

    draw = HFSampler.sample

    def sample(*args: Any) -> Iterator[Any]:
        drawn = draw(*args)
        while True:
            start = time.monotonic()
            one = next(drawn, None)
            seconds["sampling"] += time.monotonic() - start
            if one is None:
                return
            seconds["first_sample"] = seconds["first_sample"] or time.time() - started
            yield one

    HFSampler.sample = sample  # type: ignore[method-assign]
    timed(pl.Trainer, "fit", "training")
    timed(Sandbox, "run", "executing")
    sys.argv = ["run.py", *arguments]
    runpy.run_path(str(ROOT / "run.py"), run_name="__main__")
    Path(output).write_text(json.dumps(seconds))


def main() -> None:
    """Run as often as requested; print one line per run and one JSON object."""
    words = sys.argv[1:]
    times = int(words[words.index("--") + 1]) if "--" in words else 1
    overrides = words[: words.index("--")] if "--" in words else words
    found = []
    for i in range(times):
        with tempfile.TemporaryDirectory() as folder:
            own = [f"store.dir={folder}/store", f"hydra.run.dir={folder}/run", *overrides]
            output, started = Path(folder) / "seconds.json", time.time()
            command = [sys.executable, __file__, _CHILD, str(started), str(output), *own]
            subprocess.run(command, check=True, stdout=subprocess.DEVNULL, cwd=folder)
            wall, parts = time.time() - started, json.loads(output.read_text())
        rest = wall - sum(parts[work] for work in ("sampling", "training", "executing"))
        found.append({"wall": wall, **parts, "share": rest / wall})
        print(f"run {i + 1}: " + ", ".join(f"{k} {v:.2f}" for k, v in found[-1].items()), flush=True)
    medians = {key: round(statistics.median(one[key] for one in found), 3) for key in found[0]}
    print(json.dumps({"benchmark": "overhead", "overrides": overrides, "runs": times, **medians}))


if __name__ == "__main__":
    if sys.argv[1:2] == [_CHILD]:
        measured(float(sys.argv[2]), sys.argv[3], sys.argv[4:])
    else:
        main()

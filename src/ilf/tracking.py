"""Weights & Biases, TensorBoard and CSV: a view of a run. The files in the run's folder are the truth."""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ilf.components import Component
from ilf.types import InputError, Program

# What is attached of a run's folder: each file's artifact, its type, and the artifacts that it was made of.
_ARTIFACTS: dict[str, tuple[str, str, tuple[str, ...]]] = {
    "zero_shot.jsonl": ("zero-shot", "samples", ()),
    "sample.jsonl": ("samples", "samples", ("policy",)),  # of the round before, where there was one
    "refiner": ("refiner", "model", ("samples",)),
    "refinements.jsonl": ("refinements", "refinements", ("samples", "refiner")),
    "llm.jsonl": ("llm-refinements", "refinements", ("samples",)),
    "training.jsonl": ("training-set", "dataset", ("samples", "refinements", "llm-refinements")),
    "policy": ("policy", "model", ("training-set",)),
    "validation.jsonl": ("validation", "samples", ("policy",)),
    "finetuned.jsonl": ("finetuned", "samples", ("policy",)),
    "results.json": ("results", "results", ("zero-shot", "refinements", "finetuned")),
}
# Of these files, by data set, turn of feedback at test time, and round.
_NAME = re.compile(r"(transfer_)?(\w+?)(_turn\d+(?:_fresh)?)?(_round\d+)?(?:\.\w+)?")

_FOLDERS = {  # that W&B writes to, in a home folder or the working one unless its variable names another
    "WANDB_ARTIFACT_DIR": "artifacts",
    "WANDB_CACHE_DIR": "cache",
    "WANDB_DATA_DIR": "data",
}
_LONGEST = "transfer-llm-refinements-round-99"  # name of an artifact, to which the run's id is added


def is_wandb(logger: Component) -> bool:
    """Return whether a logger is Lightning's for W&B, or derives from it."""
    from pytorch_lightning.loggers import WandbLogger

    target = logger.resolve()
    return isinstance(target, type) and issubclass(target, WandbLogger)


def check_wandb(loggers: Mapping[str, Component], sweep: bool) -> None:
    """Check what W&B takes only later, or for another run: the project's name, and its variables.

    Args:
        loggers: By name.
        sweep: Whether there are several jobs.

    Raises:
        InputError: W&B refuses a value by its own rules, or the jobs of a sweep would all be one run.
    """
    for name, logger in loggers.items():
        if is_wandb(logger):
            _check_wandb(f"logger.{name}.project", str(logger.get("project", "lightning_logs")), sweep)


def _check_wandb(key: str, project: str, sweep: bool) -> None:
    given = {name: value for name, value in os.environ.items() if name.startswith("WANDB_")}
    if sweep and "WANDB_RUN_ID" in given:
        allowed = "all jobs of the sweep would be this one run of Weights & Biases"
        raise InputError("WANDB_RUN_ID", given["WANDB_RUN_ID"], allowed, "Unset it: each job gets an id of its own.")
    import wandb

    for name, value in [(key, project), *given.items()]:
        variable = {"WANDB_PROJECT" if name == key else name: value}
        secret = "KEY" in name or "TOKEN" in name
        try:
            wandb.Settings().update_from_env_vars(variable)
            if name == "WANDB_RUN_ID":
                wandb.Artifact(f"{_LONGEST}-{value}", "samples")
        except (wandb.errors.UsageError, ValueError) as error:
            reason = "; ".join(one["msg"] for one in error.errors()) if hasattr(error, "errors") else str(error)
            allowed = "Weights & Biases refuses it" + ("" if secret else f": {reason.rstrip('.')}")
            advice = "Give another one." if name == key else "Set it to something else, or unset it."
            raise InputError(name, "(not shown)" if secret else value, allowed, advice) from None


class Tracker:
    """One run's loggers: any of Lightning's. W&B also gets tables of programs, artifacts and plots, TensorBoard plots.

    Args:
        loggers: What makes each, by name.
        folder: The run's folder.
        config: The resolved configuration.
        arm: The run's job type.
        group: The sweep or study that the run belongs to.
    """

    def __init__(
        self, loggers: Mapping[str, Component], folder: Path, config: dict[str, Any], arm: str, group: str | None
    ) -> None:
        self.loggers: list[Any] = []
        self.upload: str | None = None  # the command, after `close`
        self._run: Any = None
        self._tensorboard: list[Any] = []  # writers
        self._attached: dict[str, Any] = {}  # artifacts by name
        self._variables: list[str] = []  # of the environment, set while the run goes on
        self._identity = {"arm": arm, "seed": config["seed"], "study": config["study"]}
        os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")  # mlflow wants to be told that files are meant
        for name, part in loggers.items():
            wandb = is_wandb(part)
            if wandb and part.get("mode") == "disabled":
                continue
            logger = self._wandb(name, part, folder, config, group) if wandb else part()
            self.loggers.append(logger)
            if type(logger).__name__ == "TensorBoardLogger":
                self._tensorboard.append(logger.experiment)

    def _wandb(self, name: str, part: Component, folder: Path, config: dict[str, Any], group: str | None) -> Any:
        """Begin a run of Weights & Biases; group and job type are filled in where the configuration has none."""
        mode = part.get("mode") or "online"
        if mode != "online":  # its client would tell W&B's server how long things took and what failed
            os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
        own = {name: str(folder.absolute() / "wandb" / one) for name, one in _FOLDERS.items()}
        self._variables = [name for name in own if name not in os.environ]
        os.environ |= {name: own[name] for name in self._variables}
        filled = {"group": group, "job_type": self._identity["arm"]}
        filled = {key: value for key, value in filled.items() if part.get(key) is None}
        logger = part(config=config, **filled)
        self._run = self._run or logger.experiment
        return logger

    def programs(self, stage: str, programs: Sequence[Program]) -> None:
        """Show a stage's programs and verdicts as a table."""
        if self._run is not None:
            import wandb

            columns: list[str | int] = ["task_id", "sample", "verdict", "detail", "program"]
            # Given its rows at once, it would import pandas to see whether they are a frame.
            table = wandb.Table(columns=columns)
            for p in programs:
                table.add_data(p.task_id, p.sample, p.verdict.verdict, p.verdict.detail, p.program)
            self._run.log({f"{stage}/programs": table})

    def artifact(self, path: Path) -> None:
        """Attach a file or model folder of the run, with the names and digests of what it was made of.

        The lineage is metadata, because W&B takes `use_artifact` only online. A folder is attached by reference:
        gigabytes of weights are neither copied nor uploaded.
        """
        if self._run is None:
            return
        import wandb

        prefix, base, turn, end = _NAME.fullmatch(path.name).group(1, 2, 3, 4)  # type: ignore[union-attr]
        name, kind, parents = _ARTIFACTS[base + path.suffix]
        if turn:
            name, parents = name + turn.replace("_", "-"), (name, *parents, "refiner")
        own = (end or "").replace("_", "-")
        made_of = []
        for parent in parents:  # of the same round, else the newest
            rounds = [one for one in self._attached if one == parent or one.startswith(f"{parent}-round")]
            made_of += [self._attached[parent + own if parent + own in rounds else rounds[-1]]] if rounds else []
        name = (prefix or "").replace("_", "-") + name + own
        metadata = self._identity | {"parents": [{"name": a.name, "digest": a.digest} for a in made_of]}
        artifact = wandb.Artifact(f"{name}-{self._run.id}", kind)
        if path.is_dir():
            for file in sorted(file for file in path.absolute().rglob("*") if file.is_file()):
                artifact.add_reference(file.as_uri(), file.relative_to(path.absolute()).as_posix())
            metadata["weights_bytes"] = sum(file.stat().st_size for file in path.glob("*.safetensors"))
        else:
            artifact.add_file(str(path))
        artifact.metadata = metadata
        self._attached[name] = self._run.log_artifact(artifact)

    def summary(self, figures: dict[str, float], plots: Sequence[Path]) -> None:
        """Keep a run's final figures and plots, whether they were measured now or taken from the store."""
        if self._run is not None:
            import wandb

            self._run.summary.update(figures)
            self._run.log({f"plots/{file.stem}": wandb.Image(str(file)) for file in plots})
        for writer in self._tensorboard:
            from matplotlib.image import imread

            for file in plots:
                writer.add_image(f"plots/{file.stem}", imread(file), dataformats="HWC")
        for logger in self.loggers:
            logger.log_metrics(figures)
            logger.finalize("success")  # writes what is held back; each Trainer has done so before

    def replay(self, rows: Iterable[dict[str, Any]]) -> None:
        """Show the metrics of a fine-tuning that the store had: `step`, and `metrics` by name."""
        for row in rows:
            for logger in self.loggers:
                logger.log_metrics(row["metrics"], step=row["step"])

    def close(self) -> None:
        """End the run, and note the command that uploads it where there is something to upload."""
        if self._run is None:
            return
        folder, offline = Path(self._run.dir).parent, self._run.settings.mode == "offline"
        self._run.finish()
        for name in self._variables:  # another run of this process has a folder of its own
            os.environ.pop(name, None)
        self.upload = shlex.join(["wandb", "sync", str(folder)]) if offline else None

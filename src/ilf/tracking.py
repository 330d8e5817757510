"""Log a run to Weights & Biases, TensorBoard and CSV. The files in the run's folder remain the source of truth."""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ilf.components import Component
from ilf.types import InputError, Program

# The files of a run's folder that become artifacts: artifact name, type, and the artifacts from which each was made.
_ARTIFACTS: dict[str, tuple[str, str, tuple[str, ...]]] = {
    "zero_shot.jsonl": ("zero-shot", "samples", ()),
    "sample.jsonl": ("samples", "samples", ("policy",)),  # the policy of the previous round, if any
    "refiner": ("refiner", "model", ("samples",)),
    "refinements.jsonl": ("refinements", "refinements", ("samples", "refiner")),
    "llm.jsonl": ("llm-refinements", "refinements", ("samples",)),
    "training.jsonl": ("training-set", "dataset", ("samples", "refinements", "llm-refinements")),
    "policy": ("policy", "model", ("training-set",)),
    "validation.jsonl": ("validation", "samples", ("policy",)),
    "finetuned.jsonl": ("finetuned", "samples", ("policy",)),
    "results.json": ("results", "results", ("zero-shot", "refinements", "finetuned")),
}
# A file name's parts: data set, base name, turn of feedback at test time, and round.
_NAME = re.compile(r"(transfer_)?(\w+?)(_turn\d+(?:_fresh)?)?(_round\d+)?(?:\.\w+)?")

_FOLDERS = {  # where W&B writes, in the home or working directory unless the variable names another folder
    "WANDB_ARTIFACT_DIR": "artifacts",
    "WANDB_CACHE_DIR": "cache",
    "WANDB_DATA_DIR": "data",
}
_LONGEST = "transfer-llm-refinements-round-99"  # longest artifact name, to which the run's id is appended


def is_wandb(logger: Component) -> bool:
    """Return whether a logger is Lightning's WandbLogger or a subclass of it."""
    from pytorch_lightning.loggers import WandbLogger

    target = logger.resolve()
    return isinstance(target, type) and issubclass(target, WandbLogger)


def check_wandb(loggers: Mapping[str, Component], sweep: bool) -> None:
    """Check values that W&B would refuse or misuse only later: the project's name and the environment variables.

    Args:
        loggers: The loggers, by name.
        sweep: Whether the command runs several jobs.

    Raises:
        InputError: W&B refuses a value by its own rules, or all jobs of a sweep would log to the same run.
    """
    for name, logger in loggers.items():
        if is_wandb(logger):
            _check_wandb(f"logger.{name}.project", str(logger.get("project", "lightning_logs")), sweep)


def _check_wandb(key: str, project: str, sweep: bool) -> None:
    given = {name: value for name, value in os.environ.items() if name.startswith("WANDB_")}
    if sweep and "WANDB_RUN_ID" in given:
        allowed = "all jobs of the sweep would be this one run of Weights & Biases"
        raise InputError("WANDB_RUN_ID", given["WANDB_RUN_ID"], allowed, "Unset it, so that each job gets its own id.")
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
            advice = "Choose another one." if name == key else "Set it to something else, or unset it."
            raise InputError(name, "(not shown)" if secret else value, allowed, advice) from None


class Tracker:
    """The Lightning loggers of a run. W&B also gets program tables, artifacts and plots; TensorBoard also gets plots.

    Args:
        loggers: The component of each logger, by name.
        folder: The run's folder.
        config: The resolved configuration.
        arm: The run's arm, which is its job type in W&B.
        group: The sweep or study to which the run belongs.
    """

    def __init__(
        self, loggers: Mapping[str, Component], folder: Path, config: dict[str, Any], arm: str, group: str | None
    ) -> None:
        self.loggers: list[Any] = []
        self.upload: str | None = None  # the upload command, set by `close`
        self._run: Any = None
        self._tensorboard: list[Any] = []  # TensorBoard writers
        self._attached: dict[str, Any] = {}  # artifacts by name
        self._variables: list[str] = []  # environment variables that are set during the run
        self._identity = {"arm": arm, "seed": config["seed"], "study": config["study"]}
        os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")  # mlflow requires consent to store files
        for name, part in loggers.items():
            wandb = is_wandb(part)
            if wandb and part.get("mode") == "disabled":
                continue
            logger = self._wandb(name, part, folder, config, group) if wandb else part()
            self.loggers.append(logger)
            if type(logger).__name__ == "TensorBoardLogger":
                self._tensorboard.append(logger.experiment)

    def _wandb(self, name: str, part: Component, folder: Path, config: dict[str, Any], group: str | None) -> Any:
        """Start a W&B run. Fill in group and job type if the configuration sets none."""
        mode = part.get("mode") or "online"
        if mode != "online":  # the client would report timings and errors to W&B's server
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
        """Log a stage's programs and verdicts as a table."""
        if self._run is not None:
            import wandb

            columns: list[str | int] = ["task_id", "sample", "verdict", "detail", "program"]
            # If all rows were passed at once, W&B would import pandas to check for a data frame.
            table = wandb.Table(columns=columns)
            for p in programs:
                table.add_data(p.task_id, p.sample, p.verdict.verdict, p.verdict.detail, p.program)
            self._run.log({f"{stage}/programs": table})

    def artifact(self, path: Path) -> None:
        """Log a file or model folder of the run as an artifact, with the names and digests of its parent artifacts.

        The lineage is stored as metadata, because W&B accepts `use_artifact` only online. A folder is attached by
        reference, so that gigabytes of weights are neither copied nor uploaded.
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
        for parent in parents:  # of the same round if there is one, or else the newest
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
        """Log a run's final metrics and plots, whether they were computed now or reused from the store."""
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
            logger.save()

    def replay(self, rows: Iterable[dict[str, Any]]) -> None:
        """Log the metrics of a fine-tuning that was reused from the store: rows with `step`, and `metrics` by name."""
        for row in rows:
            for logger in self.loggers:
                logger.log_metrics(row["metrics"], step=row["step"])

    def close(self, failed: bool = False) -> None:
        """Finish the runs of all trackers, and set `upload` to W&B's upload command if there is something to upload.

        Args:
            failed: Whether the run failed or was interrupted, which W&B and MLflow show.
        """
        for logger in self.loggers:
            logger.finalize("failed" if failed else "success")  # each Trainer has written "success" before
        if self._run is None:
            return
        folder, offline = Path(self._run.dir).parent, self._run.settings.mode == "offline"
        self._run.finish(exit_code=int(failed))
        for name in self._variables:  # the next run of this process needs its own folders
            os.environ.pop(name, None)
        self.upload = shlex.join(["wandb", "sync", str(folder)]) if offline else None

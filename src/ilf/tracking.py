"""Weights & Biases and CSV: a view of a run. The files in the run's folder are the truth."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, cast

from ilf.settings import Logger
from ilf.types import Program


class Tracker:
    """One run's loggers.

    Args:
        settings: Which, and how.
        folder: The run's folder.
        config: The resolved configuration.
        arm: The run's job type.
        group: The sweep or study that the run belongs to.
    """

    def __init__(self, settings: Logger, folder: Path, config: dict[str, Any], arm: str, group: str | None) -> None:
        self.loggers: list[Any] = []
        self._run: Any = None
        if settings.csv:
            from pytorch_lightning.loggers import CSVLogger

            self.loggers.append(CSVLogger(folder, name="csv", version=""))
        if settings.wandb:
            import wandb
            from pytorch_lightning.loggers import WandbLogger

            self._run = wandb.init(
                project=settings.project,
                group=group,
                job_type=arm,
                config=config,
                mode=cast(Literal["online", "offline"], settings.mode),
                dir=folder,
                settings=wandb.Settings(silent=True, console="off"),
            )
            self.loggers.append(WandbLogger(experiment=self._run))

    def programs(self, stage: str, programs: Sequence[Program]) -> None:
        """Show a stage's programs and verdicts as a table."""
        if self._run is not None:
            import wandb

            columns: list[str | int] = ["task_id", "sample", "verdict", "detail", "program"]
            rows = [[p.task_id, p.sample, p.verdict.verdict, p.verdict.detail, p.program] for p in programs]
            self._run.log({f"{stage}/programs": wandb.Table(columns=columns, data=rows)})

    def artifact(self, name: str, kind: str, file: Path) -> None:
        """Attach a file."""
        if self._run is not None:
            import wandb

            artifact = wandb.Artifact(f"{name}-{self._run.id}", type=kind)
            artifact.add_file(str(file))
            self._run.log_artifact(artifact)

    def summary(self, figures: dict[str, float]) -> None:
        """Keep a run's final figures, whether they were measured now or taken from the store."""
        if self._run is not None:
            self._run.summary.update(figures)
            self._run.log(figures)
        for logger in self.loggers:
            if type(logger).__name__ == "CSVLogger":
                logger.log_metrics(figures)
                logger.save()

    def close(self) -> str | None:
        """End the run; return the command that uploads it, None where there is nothing to upload."""
        if self._run is None:
            return None
        folder, offline = Path(self._run.dir).parent, self._run.settings.mode == "offline"
        self._run.finish()
        return f"wandb sync {folder}" if offline else None

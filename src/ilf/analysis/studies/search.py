"""The study of a hyperparameter search: the settings of each arm on Refine, and the chosen ones on Test."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

from ilf.analysis.jobs import setting_of
from ilf.analysis.markdown import fence
from ilf.analysis.plots import COLOURS, canvas, plain
from ilf.analysis.studies.job import (
    PAIRED,
    Job,
    Row,
    Study,
    against,
    cells,
    grouped,
    names,
    per_task,
    subject,
)
from ilf.installation import command

_STUDY = "paper/sweep_a1"
_OF_THE_SEARCH = (
    "hparams_search",
    "select",
    "select_min_programs",
    "stages",
    "study",
    "study_table",
)  # overrides that only matter for the search, and not for Table 4


def _rounded(value: str) -> str:
    """Return a setting rounded to 4 digits, as Optuna samples learning rates with 17 digits."""
    try:
        return f"{float(value):.4g}"
    except ValueError:
        return value


def sweep_a1(jobs: Sequence[Job]) -> Study:
    """Report pass@1 on Refine of all settings by arm, and the results of the chosen ones on Test."""
    chosen = [job for job in jobs if job.folder.parent.name == "chosen" and job.results["finetuned"]]
    tried = [job for job in jobs if job.folder.parent.name != "chosen" and job.results["validation"]]
    settings = {job.folder: setting_of(job.results["overrides"]) for job in jobs}
    every = list(dict.fromkeys(key for job in tried for key in settings[job.folder]))
    varied = [key for key in every if len({settings[job.folder].get(key) for job in tried}) > 1]

    def setting(job: Job) -> tuple[str, ...]:
        return tuple(settings[job.folder].get(key, "") for key in varied)

    rows = []
    for (arm, values), group in grouped(tried, lambda job: (job.results["arm"], setting(job))).items():
        own = [job for job in chosen if (job.results["arm"], setting(job)) == (arm, values)]
        scores = per_task(group, "validation", "pass@1")
        row: Row = {"row": arm, **dict(zip(varied, map(_rounded, values), strict=True))}
        row |= cells({"validation": scores}) | {"chosen": "chosen" if own else None, "test": None}
        if own:
            name = names(own, "finetuned")[0]
            found = cells({name: per_task(own, "finetuned", name)})
            row |= {"test": found[name], "test_text": found[f"{name}_text"]}
            row |= against((own, "zero_shot"), (own, "finetuned"), name)
        rows.append(row)
    columns = {
        "fine-tuned on": "row",
        **{key.removeprefix("training.").removeprefix("policy."): key for key in varied},
        "pass@1 on Refine (%)": "validation_text",
        "": "chosen",
        "pass@1 on Test (%)": "test_text",
        "against zero-shot": "difference_text",
    }
    notes = [
        "Settings are compared by pass@1 on Refine, with 95% intervals over tasks. The best setting of each arm was "
        "evaluated once on Test. The arm that trains on the refiner's programs uses gold's best setting if the sweep "
        "includes gold.",
        PAIRED,
    ]
    if commands := table4_commands(chosen):
        notes.append("\n".join(["Table 4 with the chosen settings:", "", *fence(commands, "bash")]))
    return Study(
        "Settings chosen on Refine",
        subject(jobs),
        columns,
        rows,
        lambda file, caption: _draw(file, rows, varied, caption),
        notes,
    )


def table4_commands(chosen: Sequence[Job]) -> list[str]:
    """Return the commands of Table 4 with the chosen settings, one for all arms that share a setting.

    The first command includes the control that trains on nothing. Without a sweep over `arm` there are no commands.
    """
    arms: dict[tuple[str, ...], list[str]] = defaultdict(list)
    for job in chosen:
        overrides = job.results["overrides"]
        setting = {key: value for key, value in setting_of(overrides).items() if key not in _OF_THE_SEARCH}
        experiment = setting.pop("experiment", "")
        if _STUDY not in experiment or not any(one.startswith("arm=") for one in overrides):
            return []
        words = [f"{key}={value}" for key, value in setting.items()]
        own = arms[f"experiment={experiment.replace(_STUDY, 'paper/table4')}", *words]
        if job.results["arm"] not in own:  # seeds of an arm share a setting
            own.append(job.results["arm"])
    for own in list(arms.values())[:1]:
        own.append("none")
    return [command(*words, f"arm={','.join(own)}") for words, own in arms.items()]


def _draw(file: Path, rows: Sequence[Row], varied: Sequence[str], title: str) -> None:
    """Plot pass@1 on Refine of each setting, one panel per arm; a ring marks the chosen settings."""
    arms = list(dict.fromkeys(row["row"] for row in rows))
    most = max(sum(row["row"] == arm for row in rows) for arm in arms)
    with canvas(file, title, panels=len(arms), width=5.2, height=1.6 + 0.28 * most) as axes:
        for axis, arm in zip(axes, arms, strict=True):
            own = [row for row in rows if row["row"] == arm]
            for i, row in enumerate(own):
                low, high = 100 * row["validation_low"], 100 * row["validation_high"]
                axis.plot([low, high], [i, i], color="#9aa5b1", linewidth=2)
                axis.plot(100 * row["validation"], i, "o", color=COLOURS[0])
                if row["chosen"]:
                    axis.plot(100 * row["validation"], i, "o", markersize=13, fillstyle="none", color="black")
            labels = [plain(", ".join(f"{key.split('.')[-1]} {row[key]}" for key in varied)) for row in own]
            axis.set_title(arm, fontsize=9)
            axis.set(xlabel="pass@1 on Refine (%)", yticks=range(len(own)), yticklabels=labels)
            axis.tick_params(axis="y", labelsize=8)
            axis.set(ylim=(len(own) - 0.5, -0.5), xlim=(-3, 103))

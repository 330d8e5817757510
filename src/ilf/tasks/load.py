"""From the settings of a data set to its tasks, and to the splits of a run."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from ilf.settings import Data, Settings
from ilf.tasks import humaneval, jsonl, mbpp, mini
from ilf.types import Feedback, InputError, Splits, Task


def load(data: Data) -> tuple[list[Task], str]:
    """Return all tasks in order of id, and the SHA-256 of their content.

    Raises:
        InputError: The data can't be found, or a row is malformed.
    """
    if data.name == "humaneval":
        return humaneval.load()
    if data.name == "jsonl":
        return jsonl.load(data)
    rows = mini.rows() if data.name == "mini" else mbpp.read_rows(data.path, data.revision)
    return mbpp.tasks_from(rows, data.sha256, data.prompt)


def split_tasks(tasks: Iterable[Task], limit: Mapping[str, int | None], only: set[int] | None = None) -> Splits:
    """Return the splits, restricted and limited.

    Args:
        tasks: All tasks.
        limit: Of a split by its name: how many tasks to keep, the first ids; None for all.
        only: Ids that Refine and Train keep (the annotated ones when feedback comes from a file), before the limit.

    Raises:
        InputError: Test is left empty.
    """
    groups: dict[str, list[Task]] = {name: [] for name in mbpp.SPLIT_IDS}
    for task in tasks:
        if only is None or task.split in ("prompt", "test") or task.task_id in only:
            groups[task.split].append(task)
    cut = {name: tuple(group[: limit.get(name)]) for name, group in groups.items()}
    if not cut["test"]:
        raise InputError(
            "data.path",
            "(its rows)",
            "hold no task of the Test split (MBPP: ids 11 to 110; own tasks: column `split`, or data.split.test)",
            "Add Test tasks: every figure is reported on them.",
        )
    return Splits(test=cut["test"], refine=cut["refine"], train=cut["train"], prompt=cut["prompt"])


def check_tasks(settings: Settings, tasks: Splits, annotations: Sequence[Feedback] | None) -> None:
    """Check that the tasks have what the requested stages need.

    Args:
        settings: Of the run.
        tasks: By split, restricted and limited.
        annotations: What people wrote; None without a file of theirs.

    Raises:
        InputError: An arm, the refiner or worked examples lack tasks, or programs to learn from.
    """
    arm, asked, own = settings.refinements.name, set(settings.stages), settings.data.name == "jsonl"
    refined = {a.task_id for a in annotations or [] if a.refinement is not None}
    source, said = settings.feedback.source, {a.task_id for a in annotations or []}
    alone = annotations is not None and source == "human"  # nobody else speaks
    taught = [t for t in tasks.by_id.values() if (t.code or t.task_id in refined) and (not alone or t.task_id in said)]
    more = "give it more tasks by the column `split` or by data.split" if own else "raise data.limit"
    if arm != "none" and asked & {"refine", "train_policy"} and not tasks.train:
        advice = f"Annotate some of them, or {more}."
        raise InputError("refinements", arm, "needs tasks of the Train split, and there are none", advice)
    if "train_policy" in asked:
        programs = {
            "gold": ("gold programs (column `code`)", any(t.code for t in tasks.train)),
            "human": ("people's refinements", not alone or any(t.task_id in refined for t in tasks.train)),
        }
        what, there = programs.get(arm, ("", True))
        if not there:
            allowed = f"needs {what} of tasks of the Train split, and there are none"
            raise InputError("refinements", arm, allowed, "Write some, or choose another arm.")
    refines = arm in ("model", "self") or (arm != "none" and settings.refinements.tasks == "solved")
    # Another source may bring refinements of its own.
    lacking = source in ("human", "unit_tests") and not any(t.split == "refine" for t in taught)
    if refines and settings.refiner.name == "finetuned" and "train_refiner" in asked and lacking:
        allowed = "learns from refinements or gold programs of tasks of the Refine split, and there are none"
        advice = f"Annotate some with refinements, {more}, or choose refiner=local or refiner=few_shot."
        raise InputError("refiner", "finetuned", allowed, advice)
    shots = sum(t.split == "prompt" and t.task_id in said for t in taught)
    for key, wanted, count in (
        ("refiner.shots", alone and settings.refiner.name == "few_shot", settings.refiner.shots),
        ("llm.shots", (alone or source == "llm") and "llm" in (arm, source), settings.llm.shots),
    ):  # those of a script or of tests come later
        if annotations is not None and wanted and shots < count:
            allowed = f"needs as many annotations of the Prompt split (MBPP: ids 1 to 10), and there are {shots}"
            raise InputError(key, count, allowed, "Lower it, raise data.limit.prompt, or annotate more of them.")

"""Checks that the splits of a run have what its stages need."""

from __future__ import annotations

from collections.abc import Container, Sequence

from ilf.settings import Settings
from ilf.types import Feedback, InputError, Splits


def check_tasks(
    settings: Settings, tasks: Splits, annotations: Sequence[Feedback] | None, there: Container[str]
) -> None:
    """Check that the tasks have what the requested stages need.

    Args:
        settings: The settings of the run.
        tasks: The tasks by split, after restrictions and limits.
        annotations: The human annotations; None without an annotation file.
        there: The splits that have tasks in the data, before any task is excluded.

    Raises:
        InputError: The arm, the refiner or the worked examples lack tasks or training programs.
    """
    _check_splits(settings, tasks, there)
    _check_selection(settings, len(tasks.validation))
    arm, asked = settings.refinements, set(settings.stages)
    refined = {a.task_id for a in annotations or [] if a.refinement is not None}
    writers, said = settings.feedback.writers, {a.task_id for a in annotations or []}
    alone = annotations is not None and all(one.people for one in writers)  # no other source gives feedback
    people = f" in {settings.feedback.path}"
    taught = [t for t in tasks.by_id.values() if (t.code or t.task_id in refined) and (not alone or t.task_id in said)]
    missing = arm.missing(tasks.train, refined if alone else None)
    if "train_policy" in asked and missing:
        allowed = f"needs {missing} for tasks of the Train split, and there are none"
        allowed += people if arm.needs_annotator else ""
        advice = f"Add some, {_or_raise(settings, 'train')}or choose another arm."
        raise InputError("refinements", settings.option("refinements"), allowed, advice)
    # Another source may provide its own refinements.
    brought = any(one.refines and not one.people for one in writers)
    lacking = {
        "annotator": not brought and not any(t.split == "refine" for t in taught),
        "gold": not any(t.split == "refine" and t.code for t in taught),
        "own": False,
    }[settings.refiner.learns]
    if settings.trains_refiner and lacking:
        allowed = "is trained on refinements or gold programs for tasks of the Refine split, and there are none"
        more = _or_raise(settings, "refine")
        advice = f"Annotate some with refinements, {more}or choose refiner=local or refiner=few_shot."
        raise InputError("refiner", settings.option("refiner"), allowed + (people if alone else ""), advice)
    shots = sum(t.split == "prompt" and t.task_id in said for t in taught)
    for key, wanted, count in (
        ("refiner.shots", alone, settings.refiner.worked_examples),
        ("llm.shots", alone and arm.asks_llm, settings.llm.shots),
        ("llm.shots", len(writers) == 1 and writers[0].asks_llm, settings.llm.shots),
    ):  # feedback by a script or by unit tests is written later
        if annotations is not None and wanted and shots < count:
            allowed = f"needs this many annotations of the Prompt split (MBPP: ids 1 to 10), and there are {shots}"
            advice = f"Lower it, {_or_raise(settings, 'prompt')}or annotate more of them."
            raise InputError(key, count, allowed + people, advice)


def _check_selection(settings: Settings, tasks: int) -> None:
    """Check that enough programs are sampled to distinguish the settings that a sweep selects from.

    With 400 independent programs per setting and pass rates near 50%, a difference of 10 points is detected with a
    power of 80%.
    """
    count = settings.select * tasks
    if 0 < count < settings.select_min_programs:
        each = -(-settings.select_min_programs // tasks)
        allowed = f"scores a setting on {count} programs for {tasks} Refine tasks, fewer than select_min_programs"
        advice = f"Use select={each}, more tasks (data.limit.refine), or select_min_programs={count} for a trial run."
        raise InputError("select", settings.select, f"{allowed}={settings.select_min_programs}", advice)


def check_tests(tests: str, tasks: Splits) -> None:
    """Check that each task has the tests that executor.tests asks for.

    Args:
        tests: The setting executor.tests.
        tasks: The tasks by split.

    Raises:
        InputError: "unseen" leaves a task without tests, so that all programs pass, or no task has a challenge test.
    """
    everything = (*tasks.by_id.values(), *tasks.transfer)
    for task in everything:
        if tests == "unseen" and task.checks <= task.shown:
            one = "an input" if task.inputs else "a test"
            allowed = f"leaves task {task.task_id} without {one}, as its prompt shows all of them"
            advice = f"Give the task more {'inputs' if task.inputs else 'tests'}, or use executor.tests=all."
            raise InputError("executor.tests", tests, allowed, advice)
    if tests == "challenge" and not any(task.challenge for task in everything):
        allowed = "uses the column challenge_test_list of data=mbpp, which is empty for all tasks of this run"
        raise InputError("executor.tests", tests, allowed, "Raise data.limit.test, or use executor.tests=all.")


def check_scoring(scoring: str, tasks: Splits) -> None:
    """Check that the paper's scoring, which needs functions, can be used for the tasks.

    Args:
        scoring: The setting executor.scoring.
        tasks: The tasks by split.

    Raises:
        InputError: A task has inputs and outputs in place of tests.
    """
    scripts = [task for task in (*tasks.test, *tasks.transfer) if task.inputs]
    if scoring == "paper" and scripts:
        allowed = f"truncates and indents function bodies, and the programs of task {scripts[0].task_id} are scripts"
        raise InputError("executor.scoring", scoring, allowed, "Use executor.scoring=as_written.")


def _check_splits(settings: Settings, tasks: Splits, there: Container[str]) -> None:
    """Check that the splits that the requested stages use have tasks in the data and among the annotated tasks."""
    asked, data, trains = set(settings.stages), settings.data, settings.refinements.trains
    arm = settings.option("refinements")
    drawn = ["refine", "train"] if data.limit.prompt == 0 else ["prompt", "refine", "train"]
    sampled = "sample" in asked and (trains or settings.mode == "annotate")
    for needed, splits, use in (
        (trains and asked & {"refine", "train_policy"}, ["train"], f"refinements={arm} trains on them"),
        (settings.trains_refiner, ["refine"], "refiner=finetuned is trained on them"),
        (settings.select and not tasks.validation, ["refine"], "select scores settings on them"),
        (sampled, drawn, "the stage sample samples programs for them"),
    ):
        if not needed or any(getattr(tasks, split) for split in splits):
            continue
        if any(split in there for split in splits):  # a limit leaves at least one task, so the annotations lack them
            key, value, verb = "feedback.path", settings.feedback.path, "annotates"
        else:
            key, value, verb = f"data.{data.source[0]}", data.source[1], "holds"
        names = " or ".join(name.title() for name in splits)
        allowed = f"{verb} no task of the {names} split ({data.place_of(*splits)}), and {use}"
        raise InputError(key, value, allowed, "Add some, or request other stages.")


def _or_raise(settings: Settings, split: str) -> str:
    """Return the advice to raise a split's limit, or nothing if it has none."""
    return f"raise data.limit.{split}, " if getattr(settings.data.limit, split) is not None else ""

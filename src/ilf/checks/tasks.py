"""Whether the splits of a run have what its stages need."""

from __future__ import annotations

from collections.abc import Container, Sequence

from ilf.settings import Settings
from ilf.types import Feedback, InputError, Splits


def check_tasks(
    settings: Settings, tasks: Splits, annotations: Sequence[Feedback] | None, there: Container[str]
) -> None:
    """Check that the tasks have what the requested stages need.

    Args:
        settings: Of the run.
        tasks: By split, restricted and limited.
        annotations: What people wrote; None without a file of theirs.
        there: The splits of which the data have tasks, before any is left out.

    Raises:
        InputError: An arm, the refiner or worked examples lack tasks, or programs to learn from.
    """
    _check_splits(settings, tasks, there)
    _check_selection(settings, len(tasks.validation))
    arm, asked = settings.refinements, set(settings.stages)
    refined = {a.task_id for a in annotations or [] if a.refinement is not None}
    writers, said = settings.feedback.writers, {a.task_id for a in annotations or []}
    alone = annotations is not None and all(one.people for one in writers)  # nobody else speaks
    people = f" in {settings.feedback.path}"
    taught = [t for t in tasks.by_id.values() if (t.code or t.task_id in refined) and (not alone or t.task_id in said)]
    missing = arm.missing(tasks.train, refined if alone else None)
    if "train_policy" in asked and missing:
        allowed = f"needs {missing} of tasks of the Train split, and there are none"
        allowed += people if arm.needs_annotator else ""
        advice = f"Write some, {_or_raise(settings, 'train')}or choose another arm."
        raise InputError("refinements", settings.option("refinements"), allowed, advice)
    # Another source may bring refinements of its own.
    brought = any(one.refines and not one.people for one in writers)
    lacking = {
        "annotator": not brought and not any(t.split == "refine" for t in taught),
        "gold": not any(t.split == "refine" and t.code for t in taught),
        "own": False,
    }[settings.refiner.learns]
    if settings.trains_refiner and lacking:
        allowed = "learns from refinements or gold programs of tasks of the Refine split, and there are none"
        more = _or_raise(settings, "refine")
        advice = f"Annotate some with refinements, {more}or choose refiner=local or refiner=few_shot."
        raise InputError("refiner", settings.option("refiner"), allowed + (people if alone else ""), advice)
    shots = sum(t.split == "prompt" and t.task_id in said for t in taught)
    for key, wanted, count in (
        ("refiner.shots", alone, settings.refiner.worked_examples),
        ("llm.shots", alone and arm.asks_llm, settings.llm.shots),
        ("llm.shots", len(writers) == 1 and writers[0].asks_llm, settings.llm.shots),
    ):  # those of a script or of tests come later
        if annotations is not None and wanted and shots < count:
            allowed = f"needs as many annotations of the Prompt split (MBPP: ids 1 to 10), and there are {shots}"
            advice = f"Lower it, {_or_raise(settings, 'prompt')}or annotate more of them."
            raise InputError(key, count, allowed + people, advice)


def _check_selection(settings: Settings, tasks: int) -> None:
    """Check that settings are chosen by enough programs to tell them apart.

    Of two settings that pass half of 400 independent programs each, a difference of 10 points is found with 80% power.
    """
    count = settings.select * tasks
    if 0 < count < settings.select_min_programs:
        each = -(-settings.select_min_programs // tasks)
        allowed = f"judges a setting by {count} programs on {tasks} tasks of Refine, fewer than select_min_programs"
        advice = f"Use select={each}, more tasks (data.limit.refine), or select_min_programs={count} for a trial."
        raise InputError("select", settings.select, f"{allowed}={settings.select_min_programs}", advice)


def check_tests(tests: str, tasks: Splits) -> None:
    """Check that the tests that are to decide are there.

    Args:
        tests: The setting executor.tests.
        tasks: By split.

    Raises:
        InputError: "unseen" leaves a task none, which every program would pass; or no task has a challenge test.
    """
    everything = (*tasks.by_id.values(), *tasks.transfer)
    for task in everything:
        if tests == "unseen" and task.checks <= task.shown:
            one = "an input" if task.inputs else "a test"
            allowed = f"leaves task {task.task_id} without {one}: its prompt shows all that it has"
            advice = f"Give the task more {'inputs' if task.inputs else 'tests'}, or use executor.tests=all."
            raise InputError("executor.tests", tests, allowed, advice)
    if tests == "challenge" and not any(task.challenge for task in everything):
        allowed = "scores by the column challenge_test_list of data=mbpp, and no task of this run has anything there"
        raise InputError("executor.tests", tests, allowed, "Raise data.limit.test, or use executor.tests=all.")


def check_scoring(scoring: str, tasks: Splits) -> None:
    """Check that tasks can be scored as the paper does, which is by functions.

    Args:
        scoring: The setting executor.scoring.
        tasks: By split.

    Raises:
        InputError: There is a task whose programs read and write.
    """
    scripts = [task for task in (*tasks.test, *tasks.transfer) if task.inputs]
    if scoring == "paper" and scripts:
        allowed = f"cuts and indents the body of a function, and the programs of task {scripts[0].task_id} are scripts"
        raise InputError("executor.scoring", scoring, allowed, "Use executor.scoring=as_written.")


def _check_splits(settings: Settings, tasks: Splits, there: Container[str]) -> None:
    """Check that the splits that the requested stages go over have tasks: in the data, and among the annotated ones."""
    asked, data, trains = set(settings.stages), settings.data, settings.refinements.trains
    arm = settings.option("refinements")
    drawn = ["refine", "train"] if data.limit.prompt == 0 else ["prompt", "refine", "train"]
    sampled = "sample" in asked and (trains or settings.mode == "annotate")
    for needed, splits, use in (
        (trains and asked & {"refine", "train_policy"}, ["train"], f"refinements={arm} trains on these"),
        (settings.trains_refiner, ["refine"], "refiner=finetuned learns from these"),
        (settings.select and not tasks.validation, ["refine"], "select chooses by these"),
        (sampled, drawn, "stage sample draws programs for these"),
    ):
        if not needed or any(getattr(tasks, split) for split in splits):
            continue
        if any(split in there for split in splits):  # limits leave a task at least, so that annotations lack them
            key, value, verb = "feedback.path", settings.feedback.path, "annotates"
        else:
            key, value, verb = f"data.{data.source[0]}", data.source[1], "holds"
        names = " or ".join(name.title() for name in splits)
        allowed = f"{verb} no task of the {names} split ({data.place_of(*splits)}), and {use}"
        raise InputError(key, value, allowed, "Add some, or ask for other stages.")


def _or_raise(settings: Settings, split: str) -> str:
    """Return the advice to raise a split's limit, where there is one."""
    return f"raise data.limit.{split}, " if getattr(settings.data.limit, split) is not None else ""

"""Checks of the tasks, the feedback sources and the studies, before anything is loaded."""

from __future__ import annotations

from pathlib import Path

from ilf.analysis.studies import check_table
from ilf.annotation.answers import Answers
from ilf.feedback.composed import named
from ilf.feedback.llm import check_prompts, uses
from ilf.feedback.source import check_worked_examples, is_heard
from ilf.paths import check_model_folder, check_path, check_target
from ilf.settings import Annotate, Settings
from ilf.types import InputError


def check_experiment(settings: Settings) -> None:
    """Check the tasks, the feedback sources, and the settings that repeat, sweep or replace parts of the algorithm.

    Raises:
        InputError: A setting is invalid. The error names the key, the value, what is allowed and what to do.
    """
    _check_sources(settings)
    if settings.mode == "annotate":
        _check_annotate(settings.annotate)
    _check_study(settings)


def _check_annotate(annotate: Annotate) -> None:
    if not 1 <= annotate.port <= 65535:
        raise InputError("annotate.port", annotate.port, "must be from 1 to 65535", "Choose a port, such as 8765.")
    path = Path(annotate.path)
    if path.suffix != ".jsonl":
        advice = "Use annotate.path=annotations.jsonl; mode=export converts it to CSV."
        raise InputError("annotate.path", annotate.path, "answers are appended as JSON lines, to a .jsonl file", advice)
    advice = "Give a file in an existing folder, or a file of earlier answers."
    check_target("annotate.path", annotate.path, advice)
    if path.exists():
        check_path("annotate.path", annotate.path, "file", advice)
    Answers(path).rows()  # an existing file must hold answers


def _check_sources(settings: Settings) -> None:
    data, feedback = settings.data, settings.feedback
    for key, one in (("data", data), ("transfer", settings.transfer)):
        if one is not None:
            one.check(key)
    if settings.transfer is not None and settings.transfer.same(data):
        raise InputError(
            "transfer",
            settings.option("data@transfer"),
            "is the data set that the policy is trained on, whose Test split is evaluated anyway",
            "Choose another data set, such as data@transfer=humaneval.",
        )
    if settings.transfer is not None and settings.transfer.prompt == "chat":
        allowed = "is set by data.prompt for both data sets"
        raise InputError("transfer.prompt", "chat", allowed, "Set data.prompt=chat, and omit transfer.prompt.")
    if data.only_test:
        if set(settings.stages) - {"zero_shot", "report"} or settings.mode == "annotate":
            raise InputError(
                "data",
                settings.option("data"),
                "has only tasks for evaluation",
                "Choose data@transfer=humaneval together with another data set, or 'stages=[zero_shot]'.",
            )
        return
    if settings.mode == "annotate":  # the feedback has not been written yet
        return
    feedback.check(settings)
    _check_objective(settings)
    _check_turns(settings)
    brought = any(one.refines and not (one.people and feedback.path is None) for one in feedback.writers)
    if settings.refinements.needs_annotator and not brought and is_heard(settings.stages):
        raise InputError(
            "refinements",
            settings.option("refinements"),
            f"needs an annotator's refinements, which feedback={settings.option('feedback')} does not provide",
            "Choose feedback=human (on mini: feedback=scripted), or another arm.",
        )


def _check_objective(settings: Settings) -> None:
    """Check that the arm has what the objective trains on."""
    objective, arm = settings.objective, settings.refinements
    if not arm.trains or "train_policy" not in settings.stages:
        return
    objective.check(settings)
    if objective.second_model == "refiner":
        _check_refiner(settings, "objective", settings.option("objective"), "Choose objective=self_distillation")
    silent = "drop" in settings.feedback.transform
    if objective.needs_feedback and (arm.own_samples or silent):
        group = "feedback" if silent else "refinements"
        lacking = f"{group}={settings.option(group)} has none"
        allowed = f"needs feedback on each training program, and {lacking}"
        advice = "Choose objective=sft, dpo, kto or weighted, or another arm."
        raise InputError("objective", settings.option("objective"), allowed, advice)


def _check_turns(settings: Settings) -> None:
    """Check the feedback source and the reviser at test time."""
    evaluate, key = settings.evaluate, "evaluate.feedback"
    if evaluate.reviser not in ("policy", "refiner"):
        raise InputError("evaluate.reviser", evaluate.reviser, "must be policy or refiner", "Choose one of these.")
    source = named(evaluate.feedback, key)
    if not evaluate.turns:
        return
    if settings.evaluation.greedy:
        allowed = "means greedy decoding, so that a fresh sample is the same program again and not a control"
        raise InputError("evaluate.temperature", settings.evaluation.temperature, allowed, "Use evaluate.turns=0.")
    if any(one.people for one in source.writers):
        allowed = "people can't have annotated programs that are yet to be sampled on Test"
        raise InputError(key, evaluate.feedback, allowed, "Choose unit_tests, or llm, or a mapping with `_target_`.")
    if source.limit is not None:
        allowed = "all programs that fail at test time get feedback"
        raise InputError(f"{key}.limit", source.limit, allowed, "Omit it.")
    source.check(settings)
    # At test time, the LLM is shown the worked examples of the stage annotate again.
    shown = settings.needs_feedback and any(one.asks_llm for one in settings.feedback.writers)
    if any(one.asks_llm for one in source.writers) and settings.llm.shots and not shown:
        allowed = "needs worked examples, which only feedback=llm provides"
        raise InputError("llm.shots", settings.llm.shots, allowed, "Choose llm.shots=0, or feedback=llm.")
    if evaluate.reviser == "refiner":
        _check_refiner(settings, "evaluate.reviser", "refiner", "Choose evaluate.reviser=policy")


def _check_refiner(settings: Settings, key: str, value: str, advice: str) -> None:
    """Raise InputError if the arm has no refiner."""
    if not settings.refines:
        allowed = f"refinements={settings.option('refinements')} has no refiner"
        raise InputError(key, value, allowed, f"{advice}, or another arm.")


def _check_study(settings: Settings) -> None:
    """Check the settings that repeat, sweep or replace parts of the algorithm."""
    if settings.study_table is not None:
        check_table(settings.study, settings.study_table)
    feedback = settings.feedback
    people = any(one.people for one in feedback.writers) and feedback.path is not None
    if settings.rounds > 1 and people:
        raise InputError(
            "rounds",
            settings.rounds,
            "needs feedback on each round's new programs, and annotations are about existing programs",
            "Choose feedback=scripted (on mini), unit_tests or llm, or rounds=1.",
        )
    if settings.rounds > 1 and not settings.refinements.trains:
        allowed = f"refinements={settings.option('refinements')} trains nothing that a further round could start from"
        raise InputError("rounds", settings.rounds, allowed, "Use rounds=1.")
    _check_llm(settings)
    if settings.select and {"zero_shot", "evaluate"} & set(settings.stages):
        raise InputError(
            "select",
            settings.select,
            "selects settings on Refine, and `stages` holds stages that would evaluate every setting on Test",
            "Use 'stages=[sample,annotate,train_refiner,refine,train_policy]', or select=0.",
        )
    if uses(settings):
        check_worked_examples(settings, "llm.shots", settings.llm.shots)


def _check_llm(settings: Settings) -> None:
    """Check the source of the LLM's answers, and its prompts."""
    llm = settings.llm
    check_prompts(llm)
    if llm.path is not None:
        advice = "Give an earlier run's programs/llm_answers.jsonl, or llm_feedback.jsonl for feedback=llm."
        check_path("llm.path", llm.path, "file", advice)
    at_test_time = any(one.asks_llm for one in settings.writers_at_test_time)
    if llm.path is not None and (at_test_time or (uses(settings) and settings.rounds > 1)):
        allowed = (
            "holds answers about the programs of one run, and this run asks about programs that it has yet to sample"
        )
        advice = "Give llm.url or a local llm.model, or use rounds=1 and evaluate.turns=0."
        raise InputError("llm.path", llm.path, allowed, advice)
    if not uses(settings):
        return
    if llm.path is None and llm.model is None:
        group = "refinements" if settings.refinements.asks_llm else "feedback"
        option = f"{group}={settings.option(group)}"
        raise InputError(
            "llm.model",
            None,
            f"{option} needs a local model, a model of an OpenAI-compatible endpoint, or stored answers",
            "Give llm.model=FOLDER, or llm.url=http://HOST:PORT/v1 llm.model=NAME, or llm.path=FILE.",
        )
    if llm.url is not None and not llm.url.startswith(("http://", "https://")):
        raise InputError("llm.url", llm.url, "must be a URL", "Give llm.url=http://HOST:PORT/v1.")
    if llm.path is None and llm.url is None and (Path(str(llm.model)).exists() or str(llm.model).count("/") > 1):
        check_model_folder("llm.model", llm.model)

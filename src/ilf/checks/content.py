"""What is learnt from: tasks, feedback and its writers, studies; checked before anything is loaded."""

from __future__ import annotations

from pathlib import Path

from ilf.annotation.answers import Answers
from ilf.checks.machinery import check_model_folder
from ilf.feedback.llm import check_prompts, uses
from ilf.paths import check_path, check_target
from ilf.settings import WRITERS, Annotate, FeedbackSettings, Settings
from ilf.types import InputError


def check_content(settings: Settings) -> None:
    """Check the tasks, who speaks on them, and what repeats, sweeps or replaces parts of the algorithm.

    Raises:
        InputError: Names the key, the value, what is allowed and what to do.
    """
    _check_sources(settings)
    if settings.mode == "annotate":
        _check_annotate(settings.annotate)
    _check_study(settings)


def _check_annotate(annotate: Annotate) -> None:
    if not 1 <= annotate.port <= 65535:
        raise InputError("annotate.port", annotate.port, "must be from 1 to 65535", "Choose one, such as 8765.")
    path = Path(annotate.path)
    if path.suffix != ".jsonl":
        advice = "Use annotate.path=annotations.jsonl; mode=export makes a table of it."
        raise InputError("annotate.path", annotate.path, "answers are appended as JSON lines, to a .jsonl file", advice)
    advice = "Give a file in a folder that is there, or one of earlier answers."
    check_target("annotate.path", annotate.path, advice)
    if path.exists():
        check_path("annotate.path", annotate.path, "file", advice)
    Answers(path).rows()  # a file that is there must be answers


def _check_sources(settings: Settings) -> None:
    data, feedback = settings.data, settings.feedback
    for key, one in (("data", data), ("transfer", settings.transfer)):
        if one is not None:
            one.check(key)
    if settings.transfer is not None and settings.transfer.same(data):
        raise InputError(
            "transfer",
            settings.option("data@transfer"),
            "is the data set that the policy learns on, and Test is evaluated already",
            "Choose another one: data@transfer=humaneval.",
        )
    if data.only_test:
        if set(settings.stages) - {"zero_shot", "report"} or settings.mode == "annotate":
            raise InputError(
                "data",
                settings.option("data"),
                "has only tasks to evaluate on",
                "Choose data@transfer=humaneval beside another data set, or 'stages=[zero_shot]'.",
            )
        return
    if settings.mode == "annotate":  # the feedback is still to be written
        return
    _check_shares(feedback)
    mixed, sources = feedback.source == "mixed", feedback.writers
    if "scripted" in sources and not data.specifications():
        raise InputError(
            "feedback.sources" if mixed else "feedback",
            feedback.sources if mixed else feedback.name,
            f"scripted needs data=mini, not {settings.option('data')}: the script knows what mini's tasks ask for",
            "Choose human or unit_tests, or data=mini.",
        )
    if {"human", "llm"} & set(sources) and feedback.path is not None:
        check_path("feedback.path", feedback.path, "file", "Give a .jsonl or .csv file of annotations.")
    if "human" in sources and feedback.path is not None:
        return
    heard = set(settings.stages) & {"annotate", "train_refiner", "refine", "train_policy"}
    if "human" in sources and "drop" not in feedback.transform and heard:
        raise InputError(
            "feedback.path",
            None,
            f"feedback={feedback.name} needs a file of annotations",
            "Give feedback.path=FILE, or choose feedback=unit_tests.",
        )
    if settings.refinements.name == "human" and "scripted" not in sources and heard:
        raise InputError(
            "refinements",
            "human",
            f"needs an annotator's refinements, which feedback={feedback.name} does not bring",
            "Choose feedback=human (on mini: feedback=scripted), or another arm.",
        )


def _check_shares(feedback: FeedbackSettings) -> None:
    mixed = feedback.source == "mixed"
    for key, values in (("feedback.sources", feedback.sources), ("feedback.shares", feedback.shares)):
        if values and not mixed:
            raise InputError(
                key, values, f"is for several sources, and feedback={feedback.name}", "Add feedback=mixed."
            )
    if not mixed:
        return
    if len(set(feedback.sources)) < max(2, len(feedback.sources)):
        raise InputError(
            "feedback.sources",
            feedback.sources,
            f"must name two or more of {', '.join(WRITERS)}, each once",
            "Use 'feedback.sources=[human,unit_tests]'.",
        )
    if len(feedback.shares) != len(feedback.sources) or min(feedback.shares) < 0 or not any(feedback.shares):
        raise InputError(
            "feedback.shares",
            feedback.shares,
            f"must be a number from 0 for each of feedback.sources={feedback.sources}, not all 0",
            "Use 'feedback.shares=[1,3]' for a quarter and three quarters.",
        )


def _check_study(settings: Settings) -> None:
    """Check what repeats, sweeps or replaces parts of the algorithm."""
    arm, feedback = settings.refinements.name, settings.feedback
    people = "human" in feedback.writers and feedback.path is not None
    if settings.rounds > 1 and people:
        raise InputError(
            "rounds",
            settings.rounds,
            "needs feedback on each round's new programs, and annotations are about programs that exist already",
            "Choose feedback=scripted (on mini), unit_tests or llm, or rounds=1.",
        )
    if settings.rounds > 1 and arm == "none":
        raise InputError("rounds", settings.rounds, "refinements=none trains nothing to go on from", "Use rounds=1.")
    _check_llm(settings)
    if settings.select and {"zero_shot", "evaluate"} & set(settings.stages):
        raise InputError(
            "select",
            settings.select,
            "chooses settings by Refine, and stages holds what looks at Test: each setting would",
            "Use 'stages=[sample,annotate,train_refiner,refine,train_policy]', or select=0.",
        )
    for key, wanted, shots in (
        ("refiner.shots", settings.refiner.name == "few_shot", settings.refiner.shots),
        ("llm.shots", bool(uses(settings)), settings.llm.shots),
    ):
        limit = settings.data.limit.prompt
        if wanted and limit is not None and shots > limit:
            raise InputError(
                key,
                shots,
                f"worked examples are of the Prompt split, and data.limit.prompt={limit}",
                "Lower it, or raise data.limit.prompt.",
            )


def _check_llm(settings: Settings) -> None:
    """Check where another model's answers come from, and what it is told."""
    llm, feedback = settings.llm, settings.feedback
    check_prompts(llm)
    if llm.path is not None:
        advice = "Give an earlier run's programs/llm_answers.jsonl, or llm_feedback.jsonl for feedback=llm."
        check_path("llm.path", llm.path, "file", advice)
    if not uses(settings):
        return
    if llm.path is None and llm.model is None:
        option = "feedback=llm" if feedback.source == "llm" else "refinements=llm"
        raise InputError(
            "llm.model",
            None,
            f"{option} needs a model, local or of an OpenAI-compatible endpoint, or stored answers",
            "Give llm.model=FOLDER, or llm.url=http://HOST:PORT/v1 llm.model=NAME, or llm.path=FILE.",
        )
    if llm.url is not None and not llm.url.startswith(("http://", "https://")):
        raise InputError("llm.url", llm.url, "must be an address", "Give llm.url=http://HOST:PORT/v1.")
    if llm.path is None and llm.url is None and (Path(str(llm.model)).exists() or str(llm.model).count("/") > 1):
        check_model_folder("llm.model", llm.model)
    if feedback.source == "llm" and llm.shots and feedback.path is None and settings.data.annotator != "scripted":
        raise InputError(
            "llm.shots",
            llm.shots,
            "worked examples of feedback are an annotator's, on ids 1 to 10, and there are none",
            "Give feedback.path=annotations.jsonl, or llm.shots=0.",
        )

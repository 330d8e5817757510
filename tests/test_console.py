"""The output of the command: it fits 80 columns and states what the results mean."""

import re

import pytest
from test_comparison import write_sweep

from ilf.analysis.comparison import write_comparison
from ilf.analysis.sentences import conclusion
from ilf.cli import console


@pytest.fixture(autouse=True)
def terminal(monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")


def lines(capsys) -> list[str]:
    """Return the printed lines except paths and commands, which are never wrapped."""
    printed = capsys.readouterr().out.splitlines()
    return [
        line.rstrip() for line in printed if not re.match(r"\s*(/|python run\.py|results go to|finished stages)", line)
    ]


def test_plan_lists_the_stages_and_fits_80_columns(small_stages, capsys):
    stages = small_stages()
    console.show_plan(stages.settings, stages.tasks)
    printed = lines(capsys)
    named = [line.split()[0] for line in printed if re.match(r" [a-z_]+ ", line)][1:]
    assert named == ["zero_shot", "sample", "annotate", "train_refiner", "refine", "train_policy", "evaluate"]
    assert max(map(len, printed)) <= 80


def test_plan_omits_stages_that_an_arm_does_not_run(small_stages, capsys):
    stages = small_stages("refinements=none")
    console.show_plan(stages.settings, stages.tasks)
    named = [line.split()[0] for line in lines(capsys) if re.match(r" [a-z_]+ ", line)][1:]
    assert named == ["zero_shot", "evaluate"]


def test_printed_comparison_has_arms_and_conclusion(tmp_path, capsys):
    sweep = write_sweep(tmp_path / "s", ["gold", "model"], [0])
    write_comparison(sweep, [sweep])
    console.show_comparison(sweep, ["refinements=gold,model"])
    printed = lines(capsys)
    assert [line.split()[0] for line in printed if re.match(r" (zero-shot|gold|model) ", line)] == [
        *("zero-shot", "gold", "model")
    ]
    text = " ".join(" ".join(printed).split())
    assert re.search(r"pass@1, at a Holm-corrected level of 0\.05: .*gold", text) and "One seed does not show" in text
    assert max(map(len, printed)) <= 80


def test_long_labels_of_arms_wrap_and_numbers_do_not(tmp_path, capsys):
    sweep = write_sweep(tmp_path / "s", ["gold"], [0])
    write_comparison(sweep, [sweep])
    file = sweep / "comparison_arms.csv"
    file.write_text(file.read_text().replace("gold", "gold; training.policy.epochs=1; training.policy.lr=0.0001"))
    console.show_comparison(sweep)
    printed = lines(capsys)
    assert max(map(len, printed)) <= 80 and sum("[" in line and "]" in line for line in printed) == 2


def test_brackets_are_printed_and_are_no_markup(tmp_path, capsys):
    sweep = write_sweep(tmp_path / "[bold]s[/]", ["gold"], [0])
    write_comparison(sweep, [sweep])
    file = sweep / "comparison_arms.csv"
    file.write_text(file.read_text().replace("gold", "[red]"))
    console.show_comparison(sweep, ["refinements=gold", "stages=[red]"])
    printed = capsys.readouterr().out
    assert " [red] " in printed and "'stages=[red]' seed=0,1,2" in printed
    assert str(sweep / "comparison_pairs.png") in printed


@pytest.mark.parametrize(
    ("mean", "p", "said"),
    [
        (0.2, 0.001, "raised pass@1 by 20.0 points"),
        (-0.2, 0.001, "lowered pass@1 by 20.0 points"),
        (0.02, 0.5, "changed pass@1 by +2.0 points (95% interval +1.0 to +3.0, p = 0.500): no significant difference"),
    ],
)
def test_conclusion_follows_the_paired_test(mean, p, said):
    delta = {"mean": mean, "ci95": [0.01, 0.03], "p_value": p, "smallest_detectable": 0.04}
    results = {"delta": {"pass@1": delta}, "refinements": "model", "status": "complete"}
    text = conclusion(results)
    assert said in text and ("4.0 points could be detected" in text) == (p == 0.5)
    assert "no fine-tuned policy" in conclusion(results | {"delta": None, "status": "no_training_examples"})

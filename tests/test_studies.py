"""Every study of conf/experiment, run with a small budget: its table, plot and metrics."""

import csv
import json
import re
import runpy
import shlex
import shutil
import sys
from pathlib import Path

import pytest
from conftest import ROOT, compose_settings

from ilf.analysis.jobs import setting_of
from ilf.analysis.statistics import pass_at_k
from ilf.analysis.studies import STUDIES, paper, write_study
from ilf.analysis.studies.job import Job, read_jobs
from ilf.analysis.studies.search import table4_commands
from ilf.checks import check
from ilf.types import InputError

TINY = [
    "sampler.n=2",
    "evaluate.k=[1,2]",
    "data.limit.prompt=6",
    "data.limit.test=4",
    "data.limit.refine=20",
    "data.limit.train=24",
    "logger=none",
]
PAPER = sorted(p.stem for p in (ROOT / "conf" / "experiment" / "paper").glob("*.yaml"))
BEYOND = sorted(p.stem for p in (ROOT / "conf" / "experiment" / "beyond").glob("*.yaml"))
SHORTER = {
    "sweep_a1": [
        "arm=gold,ilf",
        "training.policy.lr=1e-5,1e-3",
        "training.policy.batch_size=8",
        "training.policy.epochs=1",
        "select=1",
        "select_min_programs=20",
    ],
    "scorer_effect": ["arm=ilf,gold"],
    "figure4": ["feedback.limit=3,6"],
}


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    """Return a function that runs each experiment once, in this process, and returns its folder."""
    root, made = tmp_path_factory.mktemp("studies"), set()

    def run(name: str, *overrides: str, again: str = "") -> Path:
        folder = root / (name.replace("/", "_") + again)
        if folder not in made:
            dirs = [f"hydra.run.dir={folder}", f"hydra.sweep.dir={folder}", f"store.dir={root / 'store'}"]
            measured = [] if name in ("paper/figure3", "paper/policy_change") else ["measure=[]"]  # to save time
            own = [*TINY, *dirs, *measured, *overrides]
            arguments, sys.argv = sys.argv, ["run.py", f"experiment={name}", *own]
            try:
                runpy.run_path(str(ROOT / "run.py"), run_name="__main__")
            finally:
                sys.argv = arguments
            made.add(folder)
        return folder

    return run


def results(folder: Path) -> list[dict]:
    """Return the results of a run or of a sweep's jobs."""
    files = [folder / "results.json"] if (folder / "results.json").exists() else sorted(folder.glob("*/results.json"))
    return [json.loads(file.read_text()) for file in files]


def rows(folder: Path, stem: str) -> dict[str, dict[str, str]]:
    return {row["row"]: row for row in csv.DictReader((folder / f"{stem}.csv").open())}


SLOW = ("policy_change", "scorer_effect", "sweep_a1", "figure4", "table3", "tables5_6")  # the others use the same code


@pytest.mark.parametrize("name", [pytest.param(n, marks=pytest.mark.slow if n in SLOW else ()) for n in PAPER])
def test_each_paper_study_writes_its_table_and_plot(study, name):
    folder = study(f"paper/{name}", *SHORTER.get(name, []))
    text = (folder / f"{name}.md").read_text()
    lines = [line for line in text.splitlines() if line.startswith("|")]
    assert len({line.count("|") for line in lines}) == 1 and len(lines) >= 3
    assert "data mini, model mini" in text.lower() and "seed 0" in text and f"]({name}.png)" in text
    assert (folder / f"{name}.png").read_bytes().startswith(b"\x89PNG")
    assert list(csv.DictReader((folder / f"{name}.csv").open()))
    assert {found["study"] for found in results(folder)} == {f"paper/{name}"}
    assert all(found["scoring"]["compare"] == "approx" for found in results(folder))


FEWER = {
    "objectives": ["arm=ilf", "objective=sft,dpo"],
    "turns": ["evaluate.turns=1", "evaluate.reviser=policy"],
    "per_task": ["refinements=model", "refinements.per_task=1,null"],
}


@pytest.mark.parametrize("name", BEYOND)
def test_each_study_beyond_the_paper_writes_its_table_and_plot(study, name):
    folder = study(f"beyond/{name}", *FEWER[name])
    text, found = (folder / f"{name}.md").read_text(), results(folder)
    assert {one["study"] for one in found} == {f"beyond/{name}"} and f"]({name}.png)" in text
    assert (folder / f"{name}.png").read_bytes().startswith(b"\x89PNG")
    assert len({tuple(one["training_task_ids"]) for one in found}) == 1  # all arms train on the same tasks


def test_a_turn_resamples_exactly_the_failing_programs(study):
    (found,) = results(study("beyond/turns", *FEWER["turns"]))
    folder = next(study("beyond/turns", *FEWER["turns"]).glob("*/results.json")).parent

    def programs(name):
        rows = map(json.loads, (folder / "programs" / f"{name}.jsonl").read_text().splitlines())
        return {(row["task_id"], row["sample"]): row for row in rows}

    for part, stage in (("zero_shot", "zero_shot"), ("finetuned", "finetuned")):
        before = programs(stage)
        failing = {at for at, row in before.items() if row["verdict"] != "passed"}
        revised, fresh = programs(f"{stage}_turn1"), programs(f"{stage}_turn1_fresh")
        assert set(revised) == set(fresh) == failing  # both resample the same programs
        assert all(before[at]["program"].rstrip() in row["prompt"] for at, row in revised.items())
        assert all("FEEDBACK:\n" in row["prompt"] for row in revised.values())
        assert not any("FEEDBACK" in row["prompt"] for row in fresh.values())
        assert not {row["seed"] for row in revised.values()} & {row["seed"] for row in fresh.values()}
        for way, drawn in (("feedback", revised), ("fresh", fresh)):
            first, second = found["turns"][part][way]
            gained = sum(row["verdict"] == "passed" for row in drawn.values()) / len(before)
            assert second["pass@1"] - first["pass@1"] == pytest.approx(gained)
            assert first == found[part]


def test_every_study_with_a_table_has_an_experiment_file():
    names = {f"paper/{name}" for name in PAPER} | {f"beyond/{name}" for name in BEYOND}
    assert names | {"mini/optuna"} == set(STUDIES)


def test_table1_covers_all_tasks_of_all_splits(study):
    folder = study("paper/table1")
    table, (found,) = rows(folder, "table1"), results(folder)
    assert int(table["whole benchmark"]["tasks"]) == 6 + 4 + 20 + 24
    counted = {**found["zero_shot"]["per_task"], **found["samples"]["per_task"]}
    assert float(table["whole benchmark"]["pass@1"]) == pytest.approx(sum(counted.values()) / 2 / len(counted))
    paper_result = table[f"whole benchmark, {paper.MODEL}"]
    assert float(paper_result["pass@1"]) == 0.31 and float(paper_result["one_correct"]) == 0.67


def test_table2_uses_an_untrained_refiner_and_varies_only_feedback(study):
    folder = study("paper/table2")
    own, shuffled = results(folder)
    assert (
        own["seconds"]["train_refiner"] is None
        and own["refiner"]["per_task"].keys() == shuffled["refiner"]["per_task"].keys()
    )
    own, shuffled = (
        {f["task_id"]: f for f in map(json.loads, (job / "feedback.jsonl").read_text().splitlines())}
        for job in sorted(folder.glob("[01]_*"))
    )
    train = [i for i, f in own.items() if f["split"] == "train"]
    assert all(own[i]["program"] == shuffled[i]["program"] and own[i]["text"] != shuffled[i]["text"] for i in train)


@pytest.mark.slow
def test_table3_arms_share_tasks_and_number_of_samples(study):
    found = {r["arm"]: r for r in results(study("paper/table3"))}
    assert set(found) == {"refiner", "refiner_without_feedback", "fresh_samples"}
    assert len({tuple(r["refiner"]["per_task"]) for r in found.values()}) == 1
    assert {r["refiner"]["n_samples"] for r in found.values()} == {2}
    fresh = [json.loads(line) for line in next(study("paper/table3").glob("2_*/programs/refinements.jsonl")).open()]
    assert all("FEEDBACK" not in row["prompt"] for row in fresh) and len({row["seed"] for row in fresh}) == len(fresh)


def test_table4_includes_rows_of_arms_that_were_not_run(study):
    table = rows(study("paper/table4"), "table4")
    assert [float(row["paper_pass@1"]) for row in table.values() if row["paper_pass@1"]] == [
        paper.FINAL[arm]["pass@1"] for arm in ("zero_shot", "ilf", "llm_1shot", "llm_2shot", "gold", "human")
    ]
    assert table["llm_1shot"]["examples"] == "no result" and "human" in table
    for job in read_jobs([study("paper/table4")])[0]:
        row = table[job.results["arm"]]
        assert float(row["pass@1"]) == pytest.approx(job.results["finetuned"]["pass@1"])


def test_seeds_are_averaged_per_task_before_computing_intervals(study, tmp_path):
    (found,) = results(study("paper/figure5"))
    counts = found["refiner"]["per_task"]
    for seed, passed in ((0, counts), (1, dict.fromkeys(counts, 0))):
        folder = tmp_path / f"{seed}_x_seed{seed}"
        folder.mkdir()
        part = found["refiner"] | {"per_task": passed}
        job = found | {"seed": seed, "refiner": part, "study": "paper/table3", "arm": "refiner"}
        (folder / "results.json").write_text(json.dumps(job))
    write_study(tmp_path, [tmp_path])
    row = rows(tmp_path, "table3")["refiner"]
    mean = sum(pass_at_k(2, c, 1) for c in counts.values()) / len(counts) / 2
    assert float(row["pass@1"]) == pytest.approx(mean) and int(row["tasks"]) == len(counts)
    assert float(row["pass@1_high"]) <= 0.5


def write_job(folder, found, **changes):
    folder.mkdir(parents=True)
    (folder / "results.json").write_text(json.dumps(found | changes))


def test_of_jobs_that_differ_only_in_their_folders_the_later_one_counts(study, tmp_path):
    found = next(r for r in results(study("paper/table4")) if r["arm"] == "gold")
    part = found["finetuned"]
    passed = dict.fromkeys(part["per_task"], part["n_samples"])
    write_job(tmp_path / "a" / "0_gold_seed0", found)
    write_job(tmp_path / "b" / "0_gold_seed0", found, finetuned=part | {"per_task": passed})
    for folders, mean in (("ab", 1.0), ("ba", found["finetuned"]["pass@1"])):
        write_study(tmp_path, [tmp_path / one for one in folders])
        assert float(rows(tmp_path, "table4")["gold"]["pass@1"]) == pytest.approx(mean)


@pytest.mark.parametrize("changes", [{"weights_sha256": "other"}, {"data_sha256": "other"}, {"overrides": ["x=1"]}])
def test_a_study_does_not_mix_jobs_of_different_settings(changes, study, tmp_path, caplog):
    found = next(r for r in results(study("paper/table4")) if r["arm"] == "gold")
    zero = found["zero_shot"] | {"per_task": dict.fromkeys(found["zero_shot"]["per_task"], 0)}
    write_job(tmp_path / "0_gold_seed0", found)
    write_job(tmp_path / "1_ilf_seed0", found, arm="ilf", zero_shot=zero, **changes)
    with caplog.at_level("WARNING"):
        assert write_study(tmp_path, [tmp_path]) is None and not (tmp_path / "table4.md").exists()
    assert "table4.md is not written: " in caplog.text and "different" in caplog.text


def test_figure3_measures_perplexity_of_training_programs(study):
    (found,) = results(study("paper/figure3"))
    sources = found["perplexity"]
    assert set(sources) == {"gold", "human", "model"} and len({tuple(v) for v in sources.values()}) == 1
    assert all(value > 1 for values in sources.values() for value in values.values())
    table = rows(study("paper/figure3"), "figure3")
    assert int(table["gold"]["tasks"]) == len(sources["gold"]) and "human" in table
    # Gold programs have a style that is rare in the mini model's pretraining corpus.
    assert float(table["gold"]["median"]) > float(table["model"]["median"])


@pytest.mark.slow
def test_figure4_feedback_limits_select_nested_sets_of_tasks(study):
    folder = study("paper/figure4", *SHORTER["figure4"])
    found = {r["feedback_limit"]: r for r in results(folder)}
    for limit, result in found.items():
        assert result["counts"]["annotated_train"] == result["refiner"]["n_tasks"] == limit
        assert set(result["training_task_ids"]) <= {int(i) for i in result["refiner"]["per_task"]}
    assert found[3]["refiner"]["per_task"].items() < found[6]["refiner"]["per_task"].items()
    assert set(found[3]["training_task_ids"]) <= set(found[6]["training_task_ids"])


def test_figure5_counts_each_refined_task_once(study):
    folder = study("paper/figure5")
    (found,) = results(folder)
    table = rows(folder, "figure5")
    assert sum(int(row["feedbacks"]) for row in table.values()) == found["refiner"]["n_tasks"]
    total = sum(float(row["mean"]) * int(row["feedbacks"]) for row in table.values())
    assert total / found["refiner"]["n_tasks"] == pytest.approx(found["refiner"]["pass@1"])


@pytest.mark.slow
def test_tables5_6_count_words_mistakes_and_categories(study):
    folder = study("paper/tables5_6")
    table = rows(folder, "tables5_6")
    feedback = [json.loads(line) for line in next(folder.glob("0_*/feedback.jsonl")).open()]
    feedback = [f for f in feedback if f["split"] != "prompt"]  # feedback on Prompt is only for worked examples
    words = [len(f["text"].split()) for f in feedback]
    assert float(table["words"]["scripted (ours)"]) == pytest.approx(sum(words) / len(words), rel=1e-2)
    assert table["mistakes addressed"]["human, paper"] == "1.8" and not table["mistakes addressed"]["unit_tests"]
    share = 100 * sum("value" in f["categories"] for f in feedback) / len(feedback)
    assert float(table["value (%)"]["scripted (ours)"]) == pytest.approx(share, rel=1e-2)


@pytest.mark.slow
def test_scorer_effect_compares_scorers_on_the_same_training_tasks(study):
    found = results(study("paper/scorer_effect", *SHORTER["scorer_effect"]))
    by_arm_and_scoring = {(r["arm"], r["scoring"]["scoring"]): r for r in found}
    assert len(by_arm_and_scoring) == 4
    for arm in ("ilf", "gold"):
        ours, paper_result = by_arm_and_scoring[arm, "as_written"], by_arm_and_scoring[arm, "paper"]
        assert ours["training_task_ids"] == paper_result["training_task_ids"]
        assert all(paper_result["finetuned"]["per_task"][i] <= c for i, c in ours["finetuned"]["per_task"].items())


@pytest.mark.slow
def test_policy_change_is_measured_for_each_arm(study):
    found = {r["arm"]: r for r in results(study("paper/policy_change"))}
    for r in found.values():
        assert 0 < r["weight_change"]["all"] < 0.1 and r["kl"]["mean"] > 0
        assert set(r["kl"]["per_task"]) == set(r["finetuned"]["per_task"])
    assert found["gold"]["weight_change"] != found["ilf"]["weight_change"]


@pytest.mark.slow
def test_sweep_selects_settings_on_refine_and_tests_each_arm_once(study):
    folder = study("paper/sweep_a1", *SHORTER["sweep_a1"])
    tried, chosen = results(folder), results(folder / "chosen")
    assert len(tried) == 4 and all(r["zero_shot"] is r["finetuned"] is None for r in tried)
    assert all(r["validation"]["n_tasks"] == 20 and r["validation"]["n_samples"] == 1 for r in tried)
    assert not list(folder.glob("[0-9]*/programs/finetuned.jsonl")) and len(chosen) == 2
    gold = [r for r in tried if r["arm"] == "gold"]
    best = max(gold, key=lambda r: r["validation"]["pass@1"])["training"]
    assert [r["training"] for r in chosen] == [best] * 2  # ILF uses the settings of gold
    table = list(csv.DictReader((folder / "sweep_a1.csv").open()))
    assert sum(row["chosen"] == "chosen" for row in table) == 2 == sum(bool(row["test"]) for row in table)
    assert {row["training.policy.lr"] for row in table} == {"1e-05", "0.001"}
    (command,) = re.findall(r"^python run\.py .*", (folder / "sweep_a1.md").read_text(), re.MULTILINE)
    lr = f"{best['lr']:.12g}"
    assert command.startswith("python run.py experiment=paper/table4 ") and command.endswith("arm=gold,ilf,none")
    assert f"training.policy.lr={lr} " in command and not re.search(r"select=|stages=|store\.|hydra\.", command)
    arms = [word.replace("arm=gold,ilf,none", "arm=gold") for word in shlex.split(command)[2:]]
    assert compose_settings(*arms, sweep=True).training.policy.lr == best["lr"]


def chosen(arm, *overrides, seed=0):
    """Return the job of an arm whose settings a sweep chose."""
    own = [f"arm={arm}", *overrides, f"seed={seed}", "select=4", "store.dir=x"]
    return Job(ROOT, {"arm": arm, "overrides": own})


def test_table4_commands_group_arms_with_the_same_chosen_settings():
    sweep = ["experiment=[mbpp/small,paper/sweep_a1]", "feedback.path=my notes.jsonl"]
    gold, human = ([*sweep, f"training.policy.lr={lr}"] for lr in ("1e-5", "5e-6"))
    jobs = [chosen(arm, *gold, seed=seed) for seed in (0, 1) for arm in ("gold", "ilf")] + [chosen("human", *human)]
    start = "python run.py 'experiment=[mbpp/small,paper/table4]' 'feedback.path=my notes.jsonl'"
    assert table4_commands(jobs) == [
        f"{start} training.policy.lr=1e-05 arm=gold,ilf,none",
        f"{start} training.policy.lr=5e-06 arm=human",
    ]
    assert table4_commands([]) == [] == table4_commands([chosen("gold", "experiment=mini/optuna")])
    other = Job(ROOT, {"arm": "gold", "overrides": [*gold, "refinements=gold"]})  # not an arm of Table 4
    assert table4_commands([other]) == []


@pytest.mark.slow
def test_a_repeated_sweep_does_not_use_stored_programs_on_test(study):
    study("paper/sweep_a1", *SHORTER["sweep_a1"])  # stores the programs on Test of the chosen settings
    again = study("paper/sweep_a1", *SHORTER["sweep_a1"], again="_again")
    tried, chosen = results(again), results(again / "chosen")
    assert all(r["zero_shot"] is r["finetuned"] is None for r in tried) and len(chosen) == 2
    assert not list(again.glob("[0-9]*/programs/zero_shot.jsonl"))


PAGE = (ROOT / "docs" / "studies" / "index.md").read_text()


@pytest.fixture
def own(tmp_path, monkeypatch):
    """Write the user-defined study of docs/studies/index.md, and return its folder."""
    code, experiment = (re.search(rf"```{kind}\n(.*?)```", PAGE, re.DOTALL).group(1) for kind in ("python", "yaml"))
    (tmp_path / "my_studies.py").write_text(code)
    (tmp_path / "mine" / "experiment").mkdir(parents=True)
    (tmp_path / "mine" / "experiment" / "words.yaml").write_text(experiment)
    monkeypatch.syspath_prepend(tmp_path)
    yield tmp_path
    sys.modules.pop("my_studies", None)


OWN = ["--config-dir", "mine", "experiment=words", *TINY, "measure=[]", "store.dir=store", "hydra.sweep.dir=out"]


@pytest.mark.slow  # test_extending.py has a shorter test
def test_a_user_defined_study_writes_its_table_and_plot(own, cli, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(own))
    done = cli(*OWN)
    assert done.returncode == 0 and "# Words" in done.stdout and "out/words.png" in done.stdout, done.stderr
    table = rows(own / "out", "words")
    assert set(table) == {"scripted", "unit_tests"} and (own / "out" / "words.png").stat().st_size > 5000
    for found in results(own / "out"):
        assert (found["study"], found["study_table"]) == ("words", "my_studies.words")
        assert float(table[found["feedback"]]["pass@1"]) == pytest.approx(found["finetuned"]["pass@1"])
    # mode=compare makes the table again from the results. If the table fails, the results are kept.
    again = cli("mode=compare", "compare.folders=[out]", "hydra.run.dir=again")
    assert again.returncode == 0 and rows(own / "again", "words") == table, again.stderr
    (own / "my_studies.py").write_text("def words(jobs):\n    return jobs[0].results['no such key']\n")
    failed = cli(*OWN)
    assert failed.returncode != 0 and "study_table='my_studies.words'" in failed.stderr and "KeyError" in failed.stderr
    assert "comparison.md" not in failed.stderr and "comparison.png" in failed.stdout and len(results(own / "out")) == 2


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("study_table", "words", "package.module.function"),
        ("study_table", "no_such_module.words", "No module named 'no_such_module'"),
        ("study_table", "my_studies.no_such_function", "no function 'no_such_function'"),
        ("study_table", "my_studies.NOTHING", "no function 'NOTHING'"),
        ("study_table", "broken.words", "ZeroDivisionError"),
        ("study_table", "my_studies..words", "package.module.function"),
        ("study_table", "", "must not be empty"),
        ("study", "comparison", "comparison.*"),
        ("study", "mine/summary", "summary.*"),
    ],
)
def test_invalid_study_names_and_tables_are_input_errors(key, value, said, own):
    (own / "broken.py").write_text("1 / 0")
    (own / "my_studies.py").open("a").write("\n\nNOTHING = None\n")
    with pytest.raises(InputError, match=re.escape(said)) as error:
        study_settings = {"study": "words", "study_table": "my_studies.words"} | {key: value}
        check(compose_settings(*(f"{name}={one}" for name, one in study_settings.items())))
    assert error.value.args[0] == key


def test_a_table_without_a_study_is_named_after_its_function(study, own):
    for file in ("results.json", "feedback.jsonl"):
        shutil.copy(next(study("paper/table4").glob("0_*")) / file, own)
    found = json.loads((own / "results.json").read_text()) | {"study": None, "study_table": "my_studies.words"}
    (own / "results.json").write_text(json.dumps(found))
    assert write_study(own, [own]) == own / "words.md"
    # study_table also replaces the table of a built-in study.
    (own / "results.json").write_text(json.dumps(found | {"study": "paper/table4"}))
    assert write_study(own, [own]) == own / "table4.md" and "# Words" in (own / "table4.md").read_text()


def test_setting_of_a_job_ignores_arm_seed_store_and_logger():
    one = setting_of(["arm=gold", "seed=1", "store.dir=x", "training.policy.lr=1e-4", "adapter.rank=8"])
    assert one == setting_of(["arm=ilf", "seed=2", "logger=none", "training.policy.lr=0.0001", "adapter.rank=8"])
    assert one != setting_of(["arm=gold", "training.policy.lr=1e-4", "adapter.rank=16"])


@pytest.mark.slow
def test_optuna_selects_settings_by_their_validation_score(study):
    pytest.importorskip("hydra_plugins.hydra_optuna_sweeper", reason="requirements-extras.txt is not installed")
    folder = study(
        "mini/optuna",
        "hydra.sweeper.n_trials=2",
        "select=1",
        "select_min_programs=20",
        "training.policy.epochs=range(1,2)",
    )
    tried, chosen = results(folder), results(folder / "chosen")
    assert len(tried) == 2 and all(r["finetuned"] is None for r in tried) and len(chosen) == 1
    assert chosen[0]["training"] == max(tried, key=lambda r: r["validation"]["pass@1"])["training"]
    assert (folder / "optuna.md").exists()


@pytest.mark.slow
def test_rounds_write_their_metrics_files_and_plot(study):
    folder = study("mini/rounds", "rounds=2")
    (found,) = results(folder)
    first, second = found["rounds"]
    assert found["finetuned"] == second["finetuned"] and found["refiner"] == second["refiner"]
    assert set(first["training_task_ids"]) <= set(second["training_task_ids"])
    assert first["delta"]["pass@1"]["mean"] == pytest.approx(
        first["finetuned"]["pass@1"] - found["zero_shot"]["pass@1"]
    )
    seeds = [
        {json.loads(line)["seed"] for line in (folder / "programs" / f"{name}.jsonl").open()}
        for name in ("sample", "sample_round2", "finetuned", "finetuned_round2")
    ]
    assert all(a.isdisjoint(b) for i, a in enumerate(seeds) for b in seeds[:i])
    assert (folder / "plots" / "rounds.png").stat().st_size > 5000 and (folder / "training_round2.jsonl").exists()
    assert "round 2" in (folder / "summary.md").read_text()


def test_transfer_evaluates_the_policy_on_another_data_set(small_stages):
    found = small_stages("data@transfer=humaneval", "transfer.limit.test=3", "data.limit.train=12").run()
    transfer = found["transfer"]
    assert transfer["data"] == "humaneval" and found["zero_shot"]["n_tasks"] == 8
    for part in ("zero_shot", "finetuned"):
        assert list(transfer[part]["per_task"]) == ["0", "1", "2"] and transfer[part]["n_samples"] == 4
    assert set(transfer["delta"]) == {"pass@1", "pass@4"} and len(transfer["data_sha256"]) == 64
    alone = small_stages("data=humaneval", "stages=[zero_shot]", "data.limit.test=3").run()
    assert alone["status"] == "partial" and list(alone["zero_shot"]["per_task"]) == ["0", "1", "2"]

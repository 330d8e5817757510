"""Output of the loggers (W&B, TensorBoard, MLflow, CSV), and summary.md."""

import json
import os
import re
import shlex
import time
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import pytest
import warm
from conftest import MINI, ROOT, SMALL, compose_settings
from test_end_to_end import wandb_records

from ilf.analysis import report
from ilf.analysis.report import Mended, next_runs, summary
from ilf.build import build
from ilf.cli.config import opened
from ilf.components import Component
from ilf.outputs import summary_of
from ilf.scoring import score
from ilf.stages import Stages
from ilf.tracking import _FOLDERS, Tracker, check_wandb
from ilf.types import InputError, Program, Verdict


@dataclass
class Ran:
    """A run on mini with every logger."""

    stages: Stages
    results: dict
    mended: list[Mended]
    upload: str

    @property
    def text(self) -> str:
        return (self.stages.folder / "summary.md").read_text()


@pytest.fixture(scope="module")
def ran(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tracked run")  # the blank must be quoted in a URI
    own = ["logger=many", "study=trial", "seed=3", f"store.dir={folder}/store", f"output_dir={folder}/run"]
    stages, shown, mended = build(compose_settings(*SMALL, *own)), [], report.mended
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(report, "mended", lambda *arguments: shown.extend(mended(*arguments)) or shown)
        try:
            results = stages.run()
        finally:
            stages.close()
    return Ran(stages, results, shown, stages.tracker.upload)


def records_of(folder):
    """Return the records of the offline W&B run in a run's folder."""
    from wandb.proto import wandb_internal_pb2

    (file,) = folder.glob("wandb/offline-run-*/*.wandb")
    found, deadline = [], time.monotonic() + 60
    while not found or found[-1].WhichOneof("record_type") != "exit":  # W&B's own process may still be writing
        assert time.monotonic() < deadline, "the offline file has no end"
        found = []
        for data in wandb_records(file):
            found.append(wandb_internal_pb2.Record())
            found[-1].ParseFromString(data)
    return found


@pytest.fixture(scope="module")
def records(ran):
    return records_of(ran.stages.folder)


def of_kind(records, kind):
    return [getattr(record, kind) for record in records if record.WhichOneof("record_type") == kind]


def test_wandb_run_records_study_arm_and_seed(records):
    run = of_kind(records, "run")[0]
    config = {item.key: json.loads(item.value_json) for item in run.config.update}
    assert (run.run_group, run.job_type) == ("trial", "model")
    assert (config["study"], config["arm"], config["seed"]) == ("trial", "model", 3)


def test_wandb_summary_has_intervals_p_value_and_learning_rate(ran, records):
    found = {}
    for one in of_kind(records, "summary"):
        found |= {"/".join(item.nested_key) or item.key: json.loads(item.value_json) for item in one.update}
    gain = ran.results["delta"]["pass@1"]
    assert found["delta/pass@1"] == gain["mean"] and found["delta/pass@1_p"] == gain["p_value"]
    assert [found["delta/pass@1_low"], found["delta/pass@1_high"]] == gain["ci95"]
    assert found["zero_shot/pass@1_low"] < found["zero_shot/pass@1"] < found["zero_shot/pass@1_high"]
    assert found["train_policy/lr"] == 2e-4


def test_summary_of_a_search_job_includes_its_validation_metrics(ran):
    searched = ran.results | {"validation": ran.results["zero_shot"], "delta": None, "finetuned": None}
    assert summary_of(searched)["validation/pass@1"] == ran.results["zero_shot"]["pass@1"]
    assert not [name for name in summary_of(searched) if name.startswith(("delta", "finetuned"))]


def test_disabled_wandb_writes_nothing(tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "disabled")
    settings = compose_settings("logger=wandb", f"output_dir={tmp_path}")
    assert settings.logger["wandb"].get("mode") == "disabled"
    tracker = Tracker(settings.logger, tmp_path, settings.config, "model", None)
    tracker.programs("zero_shot", [])
    tracker.summary({"zero_shot/pass@1": 0.5}, [])
    tracker.close()
    assert tracker.upload is None and not list(tmp_path.iterdir()) and "WANDB_DATA_DIR" not in os.environ


def test_mlflow_logs_summary_metrics(tmp_path):
    pytest.importorskip("mlflow", reason="pip install -r requirements-extras.txt")
    settings = compose_settings("logger=mlflow", f"output_dir={tmp_path}")
    tracker = Tracker(settings.logger, tmp_path, settings.config, "model", None)
    tracker.summary({"zero_shot/one_correct": 0.25}, [])
    tracker.close()
    (file,) = tmp_path.rglob("metrics/zero_shot/one_correct")
    assert file.read_text().split()[1] == "0.25"


def test_trackers_show_whether_a_run_failed(records, store, tmp_path, monkeypatch):
    pytest.importorskip("mlflow", reason="pip install -r requirements-extras.txt")

    def break_down(*arguments, **named):
        raise MemoryError

    monkeypatch.setattr("ilf.algorithm.run", break_down)
    settings = compose_settings(*SMALL, "logger=[wandb,mlflow]", f"store.dir={store}", f"output_dir={tmp_path}/run")
    with pytest.raises(MemoryError), opened(settings) as stages:
        stages.run()
    (run,) = (tmp_path / "run" / "mlflow").glob("*/*/meta.yaml")
    assert "\nstatus: 4\n" in run.read_text()  # FAILED in MLflow's protocol
    codes = [of_kind(found, "exit")[0].exit_code for found in (records, records_of(tmp_path / "run"))]
    assert codes == [0, 1]


def test_wandb_logs_programs_metrics_and_plots(ran, records):
    history = {}
    for row in of_kind(records, "history"):
        history |= {"/".join(item.nested_key) or item.key: json.loads(item.value_json) for item in row.item}
    for part in ("zero_shot", "refiner", "finetuned"):
        assert history[f"{part}/pass@1"] == ran.results[part]["pass@1"]
    files = ran.stages.folder / "wandb" / "latest-run" / "files"
    for stage, name in (("zero_shot", "zero_shot"), ("sample", "sample"), ("refine", "refinements")):
        rows = (ran.stages.folder / "programs" / f"{name}.jsonl").read_text().splitlines()
        table = json.loads((files / history[f"{stage}/programs/path"]).read_text())
        assert [row[-1] for row in table["data"]] == [json.loads(row)["program"] for row in rows]
    for plot in (ran.stages.folder / "plots").glob("*.png"):
        assert (files / history[f"plots/{plot.stem}/path"]).read_bytes() == plot.read_bytes()


def test_wandb_artifacts_record_lineage_from_samples_to_policy(ran, records):
    """The parents of an artifact are artifacts that were logged before it, with the same digests."""
    artifacts, parents = {}, {}
    for artifact in of_kind(records, "artifact"):
        if artifact.type.startswith("run_"):
            continue  # logged for a table
        metadata = json.loads(artifact.metadata)
        assert (metadata["arm"], metadata["seed"], metadata["study"]) == ("model", 3, "trial")
        assert all(artifacts[parent["name"]].digest == parent["digest"] for parent in metadata["parents"])
        artifacts[artifact.name] = artifact
        parents[artifact.name] = [parent["name"] for parent in metadata["parents"]]
    folder = Path(shlex.split(ran.upload)[-1])  # parsed as by a shell: the path contains a blank
    assert folder.is_dir()
    run = folder.name.rpartition("-")[2]
    types = {name.removesuffix(f"-{run}"): artifact.type for name, artifact in artifacts.items()}
    assert types == {
        "samples": "samples",
        "zero-shot": "samples",
        "refiner": "model",
        "refinements": "refinements",
        "training-set": "dataset",
        "policy": "model",
        "finetuned": "samples",
        "results": "results",
    }
    line = [f"{name}-{run}" for name in ("samples", "refiner", "refinements", "training-set", "policy", "finetuned")]
    assert all(before in parents[after] for before, after in pairwise(line))
    assert f"samples-{run}" in parents[f"training-set-{run}"]


def test_wandb_model_artifacts_reference_files_without_copying(ran, records):
    for name in ("policy", "refiner"):
        folder = ran.stages.folder / name
        (artifact,) = [a for a in of_kind(records, "artifact") if a.name.startswith(name)]
        size = (folder / "model.safetensors").stat().st_size
        assert json.loads(artifact.metadata)["weights_bytes"] == size
        files = {entry.path: entry for entry in artifact.manifest.contents}
        assert set(files) == {file.name for file in folder.iterdir()}
        for path, entry in files.items():
            assert entry.ref == (folder / path).as_uri() and not entry.local_path
        assert files["model.safetensors"].size == size


def test_tensorboard_logs_losses_metrics_and_plots(ran):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(ran.stages.folder / "tensorboard"))
    events.Reload()
    for part in ("zero_shot", "refiner", "finetuned"):
        for name in ("pass@1", "pass@4", "one_correct"):
            assert events.Scalars(f"{part}/{name}")[-1].value == pytest.approx(ran.results[part][name])
    losses = events.Scalars("train_policy/loss")
    assert len(losses) >= ran.results["counts"]["optimizer_steps"] > 0 and all(loss.value > 0 for loss in losses)
    for plot in (ran.stages.folder / "plots").glob("*.png"):
        (image,) = events.Images(f"plots/{plot.stem}")
        # A PNG file has its width and height, of 4 bytes each, from byte 16 on.
        assert image.encoded_image_string[16:24] == plot.read_bytes()[16:24]


def test_csv_logger_writes_metrics(ran):
    text = (ran.stages.folder / "csv" / "metrics.csv").read_text()
    assert "finetuned/pass@1" in text and str(ran.results["finetuned"]["pass@1"]) in text


# ---- summary.md -----------------------------------------------------------------------------------------------------


def blocks(text: str) -> list[tuple[str, list[str]]]:
    """Return the language and lines of each fenced code block in Markdown, by CommonMark's rules.

    An open fence at the end is a failure.
    """
    found, fence = [], ""
    for line in text.splitlines():
        if fence and re.fullmatch(f"{fence}`*", line.strip()):
            fence = ""
        elif fence:
            found[-1][1].append(line)
        elif start := re.match("(`{3,})([a-z]*)$", line):
            fence = start[1]
            found.append((start[2], []))
    assert not fence, "a fence is left open"
    return found


def test_summary_page_has_all_metrics_plots_and_main_settings(ran):
    lines = ran.text.splitlines()
    for part, label in report.ROWS.items():
        (row,) = [line for line in lines if line.startswith(f"| {label}")]
        for name, interval in ran.results[part]["ci95"].items():
            assert all(f"{100 * value:.1f}" in row for value in (ran.results[part][name], *interval))
    for name, d in ran.results["delta"].items():
        (row,) = [line for line in lines if line.startswith(f"{name}:")]
        assert f"{100 * d['mean']:+.1f} points" in row
    plots = {file.name for file in (ran.stages.folder / "plots").iterdir()}
    assert plots == set(re.findall(r"!\[.*\]\(plots/(.*)\)", ran.text)) != set()
    for fact in (
        "mini",
        "scripted",
        "finetuned",
        "seed 3",
        "4 samples a task",
        "temperature 0.8",
        "8 Test",
        "complete",
    ):
        assert fact in ran.text, fact


def test_summary_page_shows_programs_that_refinement_corrected(ran):
    tasks = ran.stages.tasks
    assert [m.task_id for m in ran.mended] == ran.results["refiner"]["solved_tasks"][:5] and len(ran.mended) == 5
    for field, passes in (("before", False), ("after", True)):
        programs = [(getattr(m, field), tasks.by_id[m.task_id]) for m in ran.mended]
        assert [v.passed for v in score(programs, ran.stages.sandbox, "all")] == [passes] * 5
    quoted = " ".join(" ".join(lines) for language, lines in blocks(ran.text) if language == "text")
    diffs = [lines for language, lines in blocks(ran.text) if language == "diff"]
    for m, lines in zip(ran.mended, diffs, strict=True):
        for words in (tasks.by_id[m.task_id].text, m.feedback, m.detail):
            assert words and "".join(words.split()) in "".join(quoted.split())
        old, new = m.before.splitlines(), m.after.splitlines()
        assert {line[1:] for line in lines if line[0] == "-"} <= set(old)
        assert {line[1:] for line in lines if line[0] == "+"} <= set(new)
        assert {line[0] for line in lines} & {"-", "+"} and len(lines) <= 30
        # The diff shows every line that only one of the two programs contains.
        assert {*old} ^ {*new} <= {line[1:] for line in lines if line[0] in "-+"}


EVIL = "```\n# no heading\n````\n| a | b |\n<b>" + "x" * 3000 + " ```` `"


def test_summary_text_stays_inside_its_code_fence(ran):
    before = f'def f(x):\n    """{EVIL}"""\n' + "\n".join(f"    x += {i}" for i in range(300))
    mended = [Mended(311, EVIL, before, EVIL, EVIL, before.replace("+=", "-="))] * 2
    text = summary(ran.results | {"rejected": [EVIL] * 50}, mended, ["pass_at_k.png"])
    found = blocks(text)
    assert [language for language, _ in found] == ["text", "diff"] * 2 + ["bash", "text"]
    assert all(len(lines) < 40 for _, lines in found) and max(map(len, text.splitlines())) < 500
    fenced = [line for _, lines in found for line in lines]
    for sign in ("# no heading", "<b>", "| a | b |"):
        inside, everywhere = sum(sign in line for line in fenced), sum(sign in line for line in text.splitlines())
        assert inside == everywhere > 0
    assert "10 of 50" in text


def composed(command: str) -> list:
    """Return the settings of each job that a command starts, checked as run.py checks them."""
    words = shlex.split(command)
    assert words[:2] == ["python", "run.py"]
    words = words[2:]
    if words[0] != "-m":
        return [compose_settings(*words)]
    swept, rest = words[1], words[2:]
    key, _, values = swept.partition("=")
    return [compose_settings(f"{key}={value}", *rest) for value in values.split(",")]


def delta(mean: float, p: float, smallest: float | None) -> dict:
    found = {"mean": mean, "ci95": [mean - 0.1, mean + 0.1], "p_value": p, "smallest_detectable": smallest}
    return {"delta": {"pass@1": found}}


FILE = ROOT / "README.md"  # in place of a file of annotations, which is not read
NEXT_RUN_CASES = {  # changes to the results, text that a command must contain, text that none may contain
    "complete": ({}, "refinements=gold,human,model,self,none", "stages"),
    "a seed": ({"seed": 7}, "seed=7,8,9", "feedback.select"),
    "partial": (
        {"status": "partial", "delta": None, "overrides": ["stages=[sample,zero_shot]", "sampler.n=12", "seed=0"]},
        "sampler.n=12",
        "stages",
    ),
    "nothing to train on": ({"status": "no_training_examples", "delta": None}, "sampler.n=8", "feedback.select"),
    "few tasks": (delta(0.1, 0.4, 0.2), "limit.test=null", ""),
    "no difference": (delta(0.0, 1.0, None), "limit", ""),
    "a difference": (delta(0.3, 0.01, 0.2), "seed", "limit"),
    "off-policy": (
        {"feedback_on_policy": False, "annotator": "human", "annotated_policy": "codegen"}
        | {"overrides": ["data=mbpp", "feedback=human", f"feedback.path={FILE}", "model=local", f"model.path={MINI}"]},
        "feedback.select=annotated_and_failed",
        "feedback=unit_tests",
    ),
    "no annotator": (
        {"annotator": "unit_tests", "overrides": ["feedback=unit_tests"]},
        "gold,model,self,none",
        "human",
    ),
    "an arm": (
        {"overrides": ["arm=gold", "experiment=paper/table4", "sampler.n=10"]},
        "arm=gold,human,ilf,self,none experiment=paper/table4",
        "refinements",
    ),
    "a list": ({"overrides": ["evaluate.k=[1,4]", "output_dir=old", "sampler.n=4"]}, "evaluate.k=[1,4]", "output_dir"),
}


@pytest.mark.parametrize("case", NEXT_RUN_CASES)
def test_suggested_next_runs_fit_the_results_and_compose(ran, case):
    changes, some, none = NEXT_RUN_CASES[case]
    results = ran.results | {"overrides": ["sampler.n=4", "evaluate.k=[1,4]"]} | changes
    found = next_runs(results)
    commands = [" ".join(shlex.split(command)) for command, _ in found]
    assert 2 <= len(found) <= 4 and all(reason for _, reason in found)
    assert any(some in command for command in commands), commands
    assert not none or not any(none in command for command in commands), commands
    shown = [lines for language, lines in blocks(summary(results, [], [])) if language == "bash"]
    assert [command for command, _ in found] == shown[0][1::2]
    for command, _ in found:
        assert composed(command)


def test_suggested_command_keeps_overrides_and_adds_missing_stages(cli, tmp_path):
    overrides = [*SMALL, "store.dir=store", "logger=none", "stages=[zero_shot]", "seed=5"]
    done = cli(*overrides, "hydra.run.dir=out")
    assert done.returncode == 0, done.stderr[-2000:]
    assert json.loads((tmp_path / "out" / "results.json").read_text())["overrides"] == overrides
    text = (tmp_path / "out" / "summary.md").read_text()
    command = next(lines for language, lines in blocks(text) if language == "bash")[1]
    (settings,) = composed(command)
    expected = compose_settings(*(override for override in overrides if not override.startswith("stages")))
    assert settings.stages == expected.stages and (settings.seed, settings.store.dir) == (5, "store")
    assert settings.sampler == expected.sampler and settings.data == expected.data
    assert "These stages have not run: sample, annotate" in text and "From failing to passing" not in text


LOOKUPS = """
import os
import sys


def hear(event, arguments):
    if event == "socket.getaddrinfo":
        os.write(1, f"looked up {arguments[0]}\\n".encode())


sys.addaudithook(hear)
from pathlib import Path

from ilf.outputs import summary_of
from ilf.components import Component
from ilf.tracking import Tracker

folder = Path(sys.argv[1])
(folder / "results.json").write_text("{}")
own = {"project": "ilf", "mode": "offline", "save_dir": str(folder)}
loggers, config = {"wandb": Component("pytorch_lightning.loggers.WandbLogger", own)}, {"seed": 0, "study": None}
tracker = Tracker(loggers, folder, config, "ilf", None)
tracker.programs("zero_shot", [])
tracker.artifact(folder / "results.json")
tracker.summary({"zero_shot/pass@1": 0.5}, [])
tracker.close()
print("upload:", tracker.upload)
"""


def test_offline_wandb_resolves_no_remote_host_names(tmp_path, monkeypatch):
    monkeypatch.delenv("WANDB_ERROR_REPORTING", raising=False)
    (tmp_path / "lookups.py").write_text(LOOKUPS)
    done = warm.run(tmp_path / "lookups.py", [str(tmp_path)], tmp_path)
    assert done.returncode == 0 and "upload: wandb sync" in done.stdout, done.stderr
    found = set(re.findall("looked up (.*)", done.stdout))
    assert found <= {"localhost", "127.0.0.1"}


# ---- arbitrary program text ------------------------------------------------------------------------------------------

ODD = "".join(map(chr, range(32))) + "\x7f\x85\u2028\u2029\ufeff\ufffe|`<>&$\\'\"#*_[]()\U0001f600"


def test_wandb_tables_keep_arbitrary_program_text(tmp_path):
    config = {"seed": 0, "study": None}
    tracker = Tracker(wandb(save_dir=str(tmp_path), mode="offline"), tmp_path, config, "model", None)
    texts = [ODD, "half \ud83d of a pair", "x" * 200_000, ""]
    programs = [
        Program(1, "test", i, 0, "", "", text, Verdict("failed", detail=text[:500])) for i, text in enumerate(texts)
    ]
    tracker.programs("zero_shot", programs)
    tracker.close()
    (file,) = tmp_path.rglob("*.table.json")
    rows = json.loads(file.read_text())["data"]
    assert [row[-1] for row in rows] == texts
    assert [row[3] for row in rows] == [text[:500] for text in texts]


# ---- W&B's folders and restrictions ----------------------------------------------------------------------------------


def test_run_succeeds_with_an_unwritable_home_folder(tmp_path, monkeypatch, cli):
    home = tmp_path / "home"
    home.write_text("")  # a file, so that even root can't write into it
    monkeypatch.setenv("HOME", str(home))
    for name in [name for name in os.environ if name.startswith(("WANDB_", "XDG_"))]:
        monkeypatch.delenv(name)
    small = ["stages=[zero_shot]", "data.limit.test=2", "sampler.n=2", "evaluate.k=[1]", "store.dir=store"]
    done = cli(*small, "logger=many", "output_dir=run")
    assert done.returncode == 0, done.stderr
    assert home.read_text() == "" and (tmp_path / "run" / "wandb" / "data" / "artifacts").is_dir()
    assert {item.name for item in tmp_path.iterdir()} <= {"home", "run", "store", "outputs"}


def test_wandb_folders_are_per_run_unless_set_in_the_environment(tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_CACHE_DIR", str(tmp_path / "mine"))
    for folder in ("one", "other"):
        before = dict(os.environ)
        tracker = Tracker(
            wandb(save_dir=str(tmp_path / folder), mode="offline"),
            tmp_path / folder,
            {"seed": 0, "study": None},
            "model",
            None,
        )
        assert os.environ["WANDB_CACHE_DIR"] == str(tmp_path / "mine")
        assert os.environ["WANDB_DATA_DIR"] == str(tmp_path / folder / "wandb" / "data")
        file = tmp_path / "results.json"
        file.write_text("{}")
        tracker.artifact(file)
        tracker.close()
        assert list((tmp_path / folder / "wandb" / "data").rglob("tmp*"))
        assert {name: os.environ.get(name) for name in _FOLDERS} == {name: before.get(name) for name in _FOLDERS}


def wandb(**own):
    return {"wandb": Component("pytorch_lightning.loggers.WandbLogger", own)}


REJECTED_BY_WANDB = {
    "a long project": ("logger.wandb.project", "x" * 129, "128 characters"),
    **{f"a project with {sign}": ("logger.wandb.project", f"a{sign}b", "cannot contain") for sign in "/\\#?%:"},
    "a project of the environment": ("WANDB_PROJECT", "a/b", "cannot contain"),
    "an id with a sign": ("WANDB_RUN_ID", "a:b", "cannot contain"),
    "an id that no artifact may bear": ("WANDB_RUN_ID", "a b", "Artifact name"),
    "an empty id": ("WANDB_RUN_ID", "", "empty"),
    "a long tag": ("WANDB_TAGS", "a," + "b" * 65, "64 characters"),
    "a number": ("WANDB_HTTP_TIMEOUT", "soon", "number"),
}


@pytest.mark.parametrize("case", REJECTED_BY_WANDB)
def test_settings_that_wandb_rejects_are_input_errors(case, monkeypatch):
    name, value, reason = REJECTED_BY_WANDB[case]
    logger = wandb(project=value if name == "logger.wandb.project" else "ilf")
    if name != "logger.wandb.project":
        monkeypatch.setenv(name, value)
    with pytest.raises(InputError, match=f"(?s)^{re.escape(name)}={re.escape(repr(value))}: .*{reason}"):
        check_wandb(logger, sweep=False)
    check_wandb({"csv": Component("pytorch_lightning.loggers.CSVLogger")}, sweep=True)


def test_api_key_is_not_shown_in_error_messages(monkeypatch):
    monkeypatch.setenv("WANDB_API_KEY", " a secret\n")
    with pytest.raises(InputError, match=r"^WANDB_API_KEY='\(not shown\)'") as error:
        check_wandb(wandb(), sweep=False)
    assert "secret" not in str(error.value)


def test_wandb_run_id_in_a_sweep_is_an_input_error(monkeypatch, cli, tmp_path):
    monkeypatch.setenv("WANDB_RUN_ID", "mine")
    check_wandb(wandb(), sweep=False)
    done = cli("-m", "seed=0,1", "logger=wandb", "hydra.sweep.dir=sweep")
    assert done.returncode != 0 and "WANDB_RUN_ID='mine': all jobs" in done.stderr
    assert not list(tmp_path.glob("sweep/*/")), "a job has started"
    with pytest.raises(InputError, match="WANDB_RUN_ID"):  # also if only one job of a sweep uses W&B
        compose_settings("logger=wandb", sweep=True)
    compose_settings("logger=csv", sweep=True)

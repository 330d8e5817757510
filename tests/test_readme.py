"""The commands of the README, docs/ and conf/ compose and pass the checks; the README is short, and its code runs."""

import json
import re
import shlex
import sys

import pytest
import warm
from conftest import ROOT, SMALL

BASH = re.compile(r"```bash\n(.*?)```", re.DOTALL)
README = (ROOT / "README.md").read_text()
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
# test_extending.py runs the commands of every section of docs/extend.md.
BLOCKS = [block for page in PAGES if page.name != "extend.md" for block in BASH.findall(page.read_text())]
COMMANDS = [line.split("#")[0].strip() for block in BLOCKS for line in block.splitlines()]
COMMENTS = [re.findall(r"^# (python run\.py.*)", file.read_text(), re.M) for file in (ROOT / "conf").rglob("*.yaml")]
COMMANDS += [command for found in COMMENTS for command in found[:1]]
HELP = re.findall(r"\$\{command:\}(.*?)(?:   |$)", (ROOT / "conf" / "config.yaml").read_text(), re.M)
COMMANDS += [f"python run.py{arguments}" for arguments in HELP]
RUNS = {c.split("python run.py")[1].strip() for c in COMMANDS if "python run.py" in c}
OWN = {  # commands that read the user's own files; the tests named here run them
    "--config-dir mine feedback=reviewer",  # the last test of this file
    "--config-dir mine experiment=words",  # test_studies.py
    "--config-dir mine experiment=first",  # test_command.py
    "--config-dir mine 'hydra.searchpath=[file:///shared/ours,pkg://package.conf]' experiment=first",  # test_command.py
    "--config-path RUN/.hydra --config-name config",  # test_store.py
    "--config-dir mine model=starcoder2_3b data=mbpp feedback=unit_tests trainer=gpu",  # in this file
}


def test_commands_that_read_own_files_are_documented():
    assert OWN <= RUNS


@pytest.mark.parametrize("arguments", sorted(RUNS - OWN))
def test_every_documented_command_composes_and_passes_the_checks(arguments, tmp_path):
    from conftest import compose_settings

    for name in ("tasks.jsonl", "mbpp.jsonl", "annotations.jsonl", "llm_feedback.jsonl", "FOLDER/config.json"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    words = [w for w in shlex.split(arguments) if w != "-m"]
    words = [
        re.sub(r"=(tasks.jsonl|mbpp.jsonl|annotations.jsonl|llm_feedback.jsonl|FOLDER)$", rf"={tmp_path}/\1", word)
        for word in words
    ]
    words = [word.replace("=docs/", f"={ROOT}/docs/") for word in words]
    if re.search(r"sampler=(vllm|sglang|llama_cpp)", arguments):  # not installed here
        words = [word for word in words if not word.startswith("sampler.python=")] + ["sampler.module=null"]
    words = [word.replace("outputs/DATE/TIME/mini", str(tmp_path / "FOLDER")) for word in words]
    words = [word.replace("run=outputs/DATE/TIME", f"run={tmp_path}") for word in words]
    (tmp_path / "training.jsonl").touch()
    for folder in re.findall(r"multirun/\w+", arguments):
        (tmp_path / folder / "0_gold_seed0").mkdir(parents=True)
        (tmp_path / folder / "0_gold_seed0" / "failed.json").touch()
    words = [word.replace("multirun/", f"{tmp_path}/multirun/") for word in words]
    # For a sweep, compose one job per value of each key, with the first value of each other key.
    swept = {w.partition("=")[0]: w.partition("=")[2].split(",") for w in words if "," in w and "[" not in w}
    kept = [w for w in words if w.partition("=")[0] not in swept]
    for key, value in [(key, value) for key, values in swept.items() for value in values] or [("", "")]:
        job = [f"{other}={value if other == key else values[0]}" for other, values in swept.items()]
        assert compose_settings(
            *kept, *job, sweep=bool(swept) or bool(re.search("experiment=(paper|beyond)/", arguments))
        )


def test_every_linked_file_exists():
    for page in PAGES:
        for target in re.findall(r"\]\(([^)#]+)\)", page.read_text()):
            assert target.startswith("http") or (page.parent / target).exists(), (page, target)


def test_every_study_has_a_page_with_its_command():
    studies = ROOT / "conf" / "experiment"
    for file in (*studies.glob("paper/*.yaml"), *studies.glob("beyond/*.yaml")):
        assert (
            f"experiment={file.parent.name}/{file.stem}" in (ROOT / "docs" / "studies" / f"{file.stem}.md").read_text()
        )


def test_the_python_example_of_the_guide_runs(store, tmp_path):
    page = (ROOT / "docs" / "how-to" / "python.md").read_text()
    code = re.search(r"```python\n(.*?)```", page, re.DOTALL).group(1)
    small = ", ".join(f'"{override}"' for override in SMALL)
    small = f'"output_dir={tmp_path}/out", "store.dir={store}", {small}'
    code = code.replace('"output_dir=outputs/mine"', small).replace('"src"', repr(str(ROOT / "src")))
    code = code.replace('initialize("conf"', f"initialize_config_dir({str(ROOT / 'conf')!r}")
    code = code.replace("import compose, initialize", "import compose, initialize_config_dir")
    (tmp_path / "guide.py").write_text(code)
    done = warm.run(tmp_path / "guide.py", [], tmp_path)
    assert "'mean'" in done.stdout, done.stderr


def test_readme_does_not_exceed_its_word_limits():
    assert len(README.split()) <= 1400
    assert len([word for line in README.splitlines() if not line.startswith("|") for word in line.split()]) <= 1200


def test_readme_names_every_configuration_group():
    for file in (ROOT / "conf").glob("*/**/*.yaml"):
        group, *parts = file.relative_to(ROOT / "conf").parts
        assert f"`{'/'.join((group, *parts[:-1])) if group == 'hydra' else group}`" in README, file


def test_the_model_option_of_the_manual_names_a_model_of_the_hub(tmp_path):
    from conftest import compose_settings

    (option,) = re.findall(r"```yaml\n(.*?)```", (ROOT / "docs" / "how-to" / "models.md").read_text(), re.DOTALL)
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "starcoder2_3b.yaml").write_text(option)
    model = compose_settings(f"hydra.searchpath=[file://{tmp_path}]", "model=starcoder2_3b").model
    assert (model.name, model.hub, model.revision) == ("starcoder2_3b", "bigcode/starcoder2-3b", None)


def test_the_annotator_example_of_the_readme_gives_feedback(small_stages, tmp_path, monkeypatch):
    (code,) = re.findall(r"```python\n# my_package/reviewers.py\n(.*?)```", README, re.DOTALL)
    option = re.search(r'echo "(.*?)" > mine/feedback/reviewer.yaml', README).group(1)
    for name, text in (("my_package/reviewers.py", code), ("mine/feedback/reviewer.yaml", option)):
        (tmp_path / name).parent.mkdir(parents=True)
        (tmp_path / name).write_text(text)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "my_package", raising=False)
    mine = f"hydra.searchpath=[file://{tmp_path / 'mine'}]"
    stages = small_stages(mine, "feedback=reviewer", "stages=[sample,annotate]")
    stages.run()
    rows = [json.loads(line) for line in (stages.folder / "feedback.jsonl").read_text().splitlines()]
    assert rows and {row["source"] for row in rows} == {"reviewer"}
    assert all(row["text"].startswith("It fails: ") for row in rows)

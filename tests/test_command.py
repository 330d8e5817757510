"""The command line: what it imports, where it finds options, and the package that pip installs."""

import json
import os
import re
import shlex
import subprocess
import sys
import tomllib

import pytest
import warm
import yaml
from conftest import ROOT, SMALL

from ilf.installation import CONF, versions

HEAVY = ("torch", "transformers", "pytorch_lightning", "wandb", "numpy", "matplotlib")
COMPLETION = {"COMP_LINE": "python run.py data=", "COMP_POINT": "19"}
SHOWN = {  # arguments that only print something, and a part of the output
    "--help": "refinements: gold, human",
    "--cfg job": "precision: null",
    "--cfg job --resolve": "output_dir: outputs/",
    "--cfg hydra": "_target_: ilf.cli.sweep.JobCallback",
    "--hydra-help": "hydra/launcher: basic",
    "--info": "Config search path",
    "--info plugins": "OwnFolders",
    "-sc install=bash": "hydra_bash_completion",
    "-sc query=bash": "data=humaneval",
}


@pytest.mark.parametrize("arguments", SHOWN)
def test_informational_options_import_no_heavy_packages(arguments, tmp_path):
    code = (
        f"import sys, runpy; sys.argv = {['run.py', *arguments.split()]}\n"
        f"try: runpy.run_path({str(ROOT / 'run.py')!r}, run_name='__main__')\n"
        f"finally: print('HEAVY', sorted(set({HEAVY}) & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], text=True, capture_output=True, env=os.environ | COMPLETION, cwd=tmp_path
    )
    assert "HEAVY []" in done.stdout and SHOWN[arguments] in done.stdout, done.stderr
    assert not done.stderr and not list(tmp_path.iterdir())


@pytest.fixture
def mine(tmp_path):
    """Return a folder with user-defined options."""
    texts = {
        "arm/mine": "# @package _global_\ndefaults:\n  - override /refinements: gold\n\narm: mine\n",
        "experiment/mine": "# @package _global_\nseed: 7\n",
        "paths/elsewhere": "# @package _global_\ndefaults: [default]\nstore: {dir: elsewhere/store}\n"
        "hydra: {run: {dir: elsewhere/run}}\n",
        "trainer/cpu": "name: cpu\naccelerator: cpu\nprecision: bf16-true\n",
    }
    for option, text in texts.items():
        file = tmp_path / "mine" / f"{option}.yaml"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    return tmp_path / "mine"


WAYS = ("ILF_CONFIG_PATH", "--config-dir", "hydra.searchpath")


def arguments_for(way, folder, monkeypatch):
    """Return the arguments that add a folder of options, or set ILF_CONFIG_PATH and return no arguments."""
    if way == "ILF_CONFIG_PATH":
        monkeypatch.setenv(way, f"{os.pathsep}{folder}{os.pathsep}")
        return []
    return ["--config-dir", str(folder)] if way == "--config-dir" else [f"hydra.searchpath=[file://{folder}]"]


@pytest.mark.parametrize("sweep", [False, True])
@pytest.mark.parametrize("way", WAYS)
def test_user_options_are_found_and_checked_like_built_in_options(way, sweep, cli, mine, tmp_path, monkeypatch):
    words = [*["-m"] * sweep, *arguments_for(way, mine, monkeypatch), "experiment=mine", "mode=store"]
    for arms in ("mine", "mine,gold") if sweep else ("mine",):
        done = cli(*words, f"arm={arms}", "hydra.run.dir=run", "hydra.sweep.dir=run")
        assert done.returncode == 0, done.stderr
    saved = (tmp_path / "run" / ("0_mine_seed7" if sweep else "") / ".hydra" / "config.yaml").read_text()
    assert "arm: mine" in saved and "seed: 7" in saved and "refinements.Gold" in saved
    refused = cli(*words, "arm=mine", "refinements=human")
    assert refused.returncode == 1 and "refinements='human': is set by arm=mine" in refused.stderr


@pytest.mark.parametrize(
    ("way", "seeds"),
    [
        ("--config-dir", [7] * 6),  # a run suggests the missing stages, and all arms
        ("hydra.searchpath", [0, 1, 2]),  # a sweep suggests three seeds
        ("--config-path", [7, 7, 8, 9]),  # the saved configuration of a run has no groups, so no arms
    ],
)
def test_suggested_commands_find_user_options_from_any_folder(way, seeds, mine, tmp_path):
    few = ["stages=[zero_shot]", "data.limit.test=2", "sampler.n=1", "evaluate.k=[1]", "logger=none", "store.dir=store"]
    words = ["--config-dir", "mine"] if way == "--config-dir" else [f"hydra.searchpath=[file://{mine}]"]
    sweep = ["-m"] if way == "hydra.searchpath" else []
    target = ["hydra.run.dir=one", "hydra.sweep.dir=one"]
    done = warm.run(ROOT / "run.py", [*sweep, *words, "experiment=mine", "arm=mine", *few, *target], tmp_path)
    if way == "--config-path":
        again = [way, "one/.hydra", "--config-name", "config", "hydra.run.dir=two", f"output_dir={tmp_path / 'two'}"]
        done = warm.run(ROOT / "run.py", again, tmp_path)
        sweeping = [*again[:4], "-m", "seed=7,8", "hydra.sweep.dir=three"]
        assert warm.run(ROOT / "run.py", sweeping, tmp_path).returncode == 0
        assert (tmp_path / "three" / "comparison.md").exists()
    suggested = [line.strip() for line in done.stdout.splitlines() if "python run.py" in line]
    assert not sweep or "'stages=[zero_shot]'" in suggested[-1]  # rich would take it for markup
    folder = tmp_path / "elsewhere"
    folder.mkdir()
    for command in suggested:
        shown = warm.run(ROOT / "run.py", [*shlex.split(command)[2:], "mode=store"], folder)
        assert shown.returncode == 0, f"{command}\n{shown.stderr}"
    found = [yaml.safe_load(file.read_text())["seed"] for file in folder.rglob("config.yaml")]
    assert sorted(found) == seeds


@pytest.mark.slow
@pytest.mark.parametrize("way", WAYS)
def test_user_options_are_found_in_the_jobs_of_a_launcher(way, mine, tmp_path, monkeypatch):
    pytest.importorskip("hydra_plugins.hydra_joblib_launcher", reason="requirements-extras.txt is not installed")
    words = ["-m", *arguments_for(way, mine, monkeypatch), "hydra/launcher=processes", "mode=store", "experiment=mine"]
    command = [sys.executable, str(ROOT / "run.py"), *words, "hydra.sweep.dir=run"]
    done = subprocess.run([*command, "arm=mine,gold"], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "run" / "0_mine_seed7").is_dir() and (tmp_path / "run" / "1_gold_seed7").is_dir()
    done = subprocess.run([*command, "arm=mine", "refinements=human"], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode != 0 and "is set by arm=mine" in done.stderr


@pytest.mark.parametrize(
    "arguments", [["mode=store"], ["-m", "mode=store"], ["--help", "seed=1"], ["--cfg", "job", "seed=1"]]
)
@pytest.mark.parametrize("way", WAYS)
def test_missing_option_folder_is_reported(way, arguments, cli, tmp_path, monkeypatch):
    done = cli(*arguments[:-1], *arguments_for(way, tmp_path / "nosuch", monkeypatch), *arguments[-1:])
    assert str(tmp_path / "nosuch") in done.stderr and "Traceback" not in done.stderr
    if way != "hydra.searchpath" or "mode=store" in arguments:  # otherwise Hydra only warns
        assert done.returncode == 1 and not (tmp_path / "outputs").exists() and not (tmp_path / "multirun").exists()


def test_user_option_overrides_built_in_or_is_an_error_if_shadowed(cli, mine, monkeypatch):
    for way in ("--config-dir", "hydra.searchpath"):
        words = arguments_for(way, mine, monkeypatch)
        for choice in ("trainer=cpu", "experiment=[mini/rounds,mine]"):
            if "mini" in choice:
                (mine / "experiment" / "mini").mkdir(exist_ok=True)
                (mine / "experiment" / "mini" / "rounds.yaml").write_text("# @package _global_\nseed: 8\n")
            done = cli(*words, choice, "mode=store")
            assert done.returncode == 1 and f"{way}='file://{mine}'" in done.stderr, done.stderr
            assert "would not be read" in done.stderr and "Traceback" not in done.stderr
    arguments_for("ILF_CONFIG_PATH", mine, monkeypatch)
    assert "precision: bf16-true" in cli("trainer=cpu", "--cfg", "job").stdout
    assert "seed: 8" in cli("experiment=mini/rounds", "--cfg", "job").stdout


def test_first_folder_in_ilf_config_path_wins(cli, mine, tmp_path, monkeypatch):
    other = tmp_path / "other" / "experiment"
    other.mkdir(parents=True)
    (other / "mine.yaml").write_text("# @package _global_\nseed: 9\n")
    for folders, seed in ((("mine", "other"), 7), (("other", "mine"), 9)):  # relative to the working folder
        monkeypatch.setenv("ILF_CONFIG_PATH", os.pathsep.join(folders))
        done = cli("experiment=mine", "arm=mine", "--cfg", "job")
        assert f"seed: {seed}" in done.stdout and "arm: mine" in done.stdout, done.stderr


def test_help_and_completion_list_user_options(cli, mine, monkeypatch):
    arguments_for("ILF_CONFIG_PATH", mine, monkeypatch)
    assert re.search(r"^arm: .*, mine,", cli("--help").stdout, re.M)
    monkeypatch.setenv("COMP_LINE", "python run.py paths=")
    monkeypatch.setenv("COMP_POINT", "20")
    assert cli("-sc", "query=bash").stdout.split() == ["paths=default", "paths=elsewhere"]


def test_bash_completion_completes_options():
    script = """
        eval "$(python run.py -sc install=bash)"
        COMP_WORDS=(python run.py trainer=f) COMP_CWORD=2
        COMP_LINE="python run.py trainer=f" COMP_POINT=${#COMP_LINE}
        hydra_bash_completion; echo "${COMPREPLY[@]}"
    """
    environment = os.environ | {"PATH": f"{os.path.dirname(sys.executable)}:{os.environ['PATH']}"}
    done = subprocess.run(["bash", "-c", script], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.stdout.split() == ["trainer=fsdp"], done.stderr


def test_user_paths_option_moves_all_files_of_a_run(cli, mine, tmp_path, monkeypatch):
    arguments_for("ILF_CONFIG_PATH", mine, monkeypatch)
    few = ["data.limit.test=2", "stages=[zero_shot]", "logger=none", "sampler.n=4", "evaluate.k=[1]"]
    done = cli("paths=elsewhere", *few, "extras.print_config=true")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "elsewhere" / "run" / "results.json").exists() and any((tmp_path / "elsewhere/store").iterdir())
    assert not (tmp_path / ".ilf").exists() and not (tmp_path / "outputs").exists()
    tree = (tmp_path / "elsewhere" / "run" / "config_tree.txt").read_text()
    for line in ("└── name: mini", "dir: elsewhere/store", "temperature: 0.8", "├── seed: 0"):
        assert line in tree and line in done.stdout
    # A run writes nothing into another run's folder. Without print_config, no tree is printed.
    done = cli("paths=elsewhere", *few, "extras.print_config=true", "seed=1")
    assert done.returncode == 1 and "holds the results of other settings" in done.stderr
    assert (tmp_path / "elsewhere" / "run" / "config_tree.txt").read_text() == tree
    assert "└── name: mini" not in cli("paths=elsewhere", *few).stdout


def test_config_path_is_relative_to_the_working_folder(cli, tmp_path):
    few = ["data.limit.test=2", "stages=[zero_shot]", "logger=none", "sampler.n=4", "evaluate.k=[1]"]
    assert cli(*few, "hydra.run.dir=run").returncode == 0
    for path in ("run/.hydra", str(tmp_path / "run" / ".hydra")):
        done = cli("--config-path", path, "--config-name", "config", "hydra.run.dir=again")
        assert done.returncode == 0, done.stderr
    assert (tmp_path / "again" / "run.log").exists()


def test_pyproject_lists_every_package():
    """The packages are listed by hand, because one of them is outside src/."""
    table = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    there = {file.parent.relative_to(ROOT / "src").as_posix().replace("/", ".") for file in ROOT.glob("src/**/*.py")}
    assert set(table["packages"]) == there | {"ilf.conf"} and ROOT / table["package-dir"]["ilf.conf"] == CONF


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """Return the `bin` folder of a virtual environment in which the wheel is installed."""
    pytest.importorskip("setuptools", minversion="77", reason="pip would fetch it to build a wheel")
    folder = tmp_path_factory.mktemp("installed")

    def run(*command):
        done = subprocess.run(list(map(str, command)), cwd=folder, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr

    source = ["pyproject.toml", "requirements.txt", "README.md", "LICENSE", "src", "conf"]  # a build leaves files there
    (folder / "source").mkdir()
    run("cp", "-r", *(ROOT / name for name in source), folder / "source")
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check", "--no-input"]
    run(*pip, "wheel", "--no-deps", "--no-build-isolation", "--no-index", "-w", folder, folder / "source")
    run("rm", "-r", folder / "source")
    run(sys.executable, "-m", "venv", "--without-pip", folder / "venv")
    programs = folder / "venv" / "bin"
    packages = next(path for path in sys.path if path.endswith("site-packages"))
    own = next((folder / "venv").glob("lib/python*/site-packages"))
    (own / "outer.pth").write_text(packages)  # the packages of the tests' environment come after its own
    run(*pip, "--python", programs / "python", "install", "--no-deps", "--no-index", *folder.glob("*.whl"))
    assert (own / "ilf" / "conf" / "config.yaml").exists()
    return programs


@pytest.mark.slow
@pytest.mark.parametrize("start", [["ilf"], ["python", "-m", "ilf"]])
def test_the_installed_command_runs_in_any_folder(start, installed, mine, tmp_path):
    folder = tmp_path / "work"
    folder.mkdir()
    environment = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "ILF_CONFIG_PATH")}
    environment |= {"PATH": f"{installed}:{os.environ['PATH']}", "ILF_CONFIG_PATH": str(mine)}
    small = [*SMALL, "logger=none", "measure=[]", "training.epochs=1"]

    def run(*arguments):
        done = subprocess.run(
            [installed / start[0], *start[1:], *arguments], cwd=folder, env=environment, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    shown = run("--help")
    assert "  ilf -m refinements=gold" in shown and "run.py" not in shown and "arm: fresh_samples" in shown
    assert f"file://{installed.parent}/lib" in run("--info", "searchpath") and not list(folder.iterdir())
    run("experiment=mine", *small)
    (found,) = folder.glob("outputs/*/*/results.json")
    results = json.loads(found.read_text())
    assert results["status"] == "complete" and results["seed"] == 7 and (folder / ".ilf").is_dir()
    summary = (found.parent / "summary.md").read_text()
    assert re.search("^ilf .*experiment=mine", summary, re.M) and "run.py" not in summary
    run("-m", "experiment=mine", "arm=mine,none", *small)
    jobs = sorted(file.parent.name for file in folder.glob("multirun/*/*/*/results.json"))
    assert jobs == ["0_mine_seed7", "1_none_seed7"] and len(list(folder.glob("multirun/*/*/comparison.md"))) == 1
    for saved in folder.glob("*/*/*/**/.hydra/hydra.yaml"):
        text = saved.read_text()
        assert f"{installed.parent}/lib" in text and f"{ROOT}/conf" not in text


def test_versions_leave_out_packages_that_are_not_installed(monkeypatch):
    monkeypatch.setattr("ilf.installation._PACKAGES", ("no-such-package", "numpy"))
    found = versions()
    assert found["numpy"][0].isdigit() and "no-such-package" not in found

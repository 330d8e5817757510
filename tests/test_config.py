"""Every option under conf/, and every kind of invalid setting."""

import ast
import itertools
import json
import os
import pickle
import re
import subprocess
import sys
import time
from dataclasses import asdict, fields, is_dataclass

import pytest
from conftest import MINI, ROOT, compose_settings, wrong_programs
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf, flag_override

from ilf.build import build
from ilf.checks import check
from ilf.cli.config import register, settings_from
from ilf.cli.search_path import check_arm
from ilf.components import Component, resolve
from ilf.feedback.scripted import annotate
from ilf.sampling import EngineSampler
from ilf.settings import Settings
from ilf.tasks import mini
from ilf.tasks.mbpp import tasks_from
from ilf.types import InputError, NoTrainingExamples

CONF = ROOT / "conf"
OPTIONS = sorted(p.relative_to(CONF).with_suffix("").as_posix() for p in CONF.rglob("*.yaml") if p.parent != CONF)
# Options that are composed and checked but not run here, with the reason.
NOT_RUN = {
    "data/jsonl": "needs a file of tasks; run by test_own_tasks.py",
    "data/hub": "needs a data set; run by test_data.py",
    "data/mbpp": "the data is not part of the project; run by tests that have it",
    "experiment/mbpp/smoke": "needs MBPP and a real model",
    "experiment/mbpp/small": "needs MBPP and a real model, for hours",
    "experiment/mbpp/on_policy": "needs MBPP and a real model, for hours",
    "experiment/mbpp/full": "needs MBPP and a GPU",
    "model/codegen_mono_350m": "lies on the Hub",
    "model/codegen_mono_2b": "lies on the Hub",
    "model/codegen_mono_6b": "lies on the Hub",
    "model/qwen_coder_0_5b": "lies on the Hub",
    "model/smollm2_135m": "lies on the Hub",
    "trainer/gpu": "needs a GPU",
    "logger/mlflow": "needs an extra; run by test_tracking.py, where it is at hand",
    "sampler/vllm": "starts an engine; run by test_engines.py, where it is at hand",
    "sampler/transformers_serve": "starts an engine; run by test_engines.py, where it is at hand",
    "sampler/sglang": "starts an engine that is not at hand",
    "sampler/llama_cpp": "starts an engine that is not at hand",
    "trainer/ddp": "run by test_distributed.py",
    "trainer/fsdp": "run by test_distributed.py",
    "executor/ray": "needs an extra; run by test_cluster.py, where it is at hand",
    "experiment/gpu/checks": "needs a GPU; its checks run in test_memory.py",
    "experiment/mini/pretrain": "run by test_mini.py",
    "experiment/mini/rounds": "run by test_studies.py",
    "experiment/mini/optuna": "run by test_studies.py, where the extra is at hand",
    "hparams_search/mini_optuna": "is experiment/mini/optuna",
    "hydra/launcher/slurm": "needs Slurm; run by test_cluster.py, where that is at hand",
    "hydra/launcher/processes": "run by test_cluster.py, where the extra is at hand",
    "data/humaneval": "run as data@transfer by test_studies.py",
    "refinements/llm": "needs another model; run by test_llm.py",
    "feedback/llm": "needs another model; run by test_llm.py",
    "sampler/openai": "needs a server; run by test_samplers.py",
    "sampler/continuous": "slow without a GPU; run by test_samplers.py on fewer programs",
    "debug/overfit": "thirty epochs; composed here",
    "debug/profile": "as debug/smoke, with Lightning's profiler, which test_extending.py runs",
    **{
        o: "run by test_studies.py"
        for o in OPTIONS
        if o.startswith(("experiment/paper/", "experiment/beyond/", "arm/"))
    },
    **{o: "run by test_objectives.py" for o in OPTIONS if o.startswith("objective/")},
}


# Plugins without which an option can't be composed.
REQUIRED_PLUGINS = {
    "experiment/mini/optuna": "hydra_plugins.hydra_optuna_sweeper",
    "hparams_search/mini_optuna": "hydra_plugins.hydra_optuna_sweeper",
    "hydra/launcher/slurm": "hydra_plugins.hydra_submitit_launcher",
    "hydra/launcher/processes": "hydra_plugins.hydra_joblib_launcher",
}
# Groups whose chosen option is not recorded in the settings.
UNNAMED_GROUPS = ("experiment", "debug", "paths", "extras", "hparams_search", "hydra/launcher")


def override(option: str) -> str:
    group, _, name = option.removeprefix("hydra/").partition("/")
    return f"{'hydra/' * option.startswith('hydra/')}{group}={name}"


SOME_FILE = ROOT / "README.md"  # a placeholder where a file is required but not read
REQUIRED_OVERRIDES = {  # overrides without which an option can't be composed
    "model/local": [f"model.path={MINI}"],
    "refiner/local": [f"refiner.path={MINI}"],
    "feedback/human": [f"feedback.path={SOME_FILE}"],
    "refinements/llm": [f"llm.path={SOME_FILE}"],
    "feedback/llm": [f"llm.path={SOME_FILE}"],
    "arm/llm_1shot": [f"llm.path={SOME_FILE}"],
    "arm/llm_2shot": [f"llm.path={SOME_FILE}"],
    "data/humaneval": ["stages=[zero_shot]"],
    "sampler/openai": ["sampler.url=http://localhost:8000/v1"],
    "sampler/vllm": ["sampler.module=null"],  # the engine's module is not installed here
    "sampler/sglang": ["sampler.module=null"],
    "sampler/llama_cpp": ["sampler.module=null"],
    "data/jsonl": [f"data.path={SOME_FILE}", f"feedback.path={SOME_FILE}"],
    "data/hub": ["data.name=owner/name", "feedback=unit_tests"],
    "data/mbpp": [f"feedback.path={SOME_FILE}"],
    "experiment/mbpp/smoke": [f"feedback.path={SOME_FILE}"],
    "experiment/mbpp/small": [f"feedback.path={SOME_FILE}"],
    "experiment/mbpp/full": [f"feedback.path={SOME_FILE}"],
}


@pytest.mark.parametrize("option", OPTIONS)
def test_each_option_starts_with_its_command_and_composes(option):
    if option in REQUIRED_PLUGINS:
        pytest.importorskip(REQUIRED_PLUGINS[option], reason="requirements-extras.txt is not installed")
    text = (CONF / f"{option}.yaml").read_text()
    first = next(line for line in text.splitlines() if not line.startswith("# @package"))
    assert first.startswith("# python run.py"), first
    group, _, name = override(option).partition("=")
    if group == "module":  # the group is used twice, as module.policy and module.refiner
        assert compose_settings(f"module@module.policy={name}").chosen["module@module.policy"] == name
        return
    settings = compose_settings(override(option), *REQUIRED_OVERRIDES.get(option, []))
    if group == "arm":
        assert settings.arm == name
    elif group not in UNNAMED_GROUPS:
        assert settings.chosen[group] == name
    if group in COMPONENT_GROUPS:  # the data set determines the source that `annotator` stands for
        assert settings.option(group) == ("scripted" if name == "annotator" else name)


COMPONENT_GROUPS = ("feedback", "refiner", "refinements")


@pytest.mark.parametrize("option", [o for o in OPTIONS if o.split("/")[0] in ("sampler", "executor", "objective")])
def test_sampler_executor_and_objective_options_list_all_defaults(option):
    node = OmegaConf.to_container(OmegaConf.load(CONF / f"{option}.yaml"))
    kind = resolve(node.pop("_target_"), "_target_")
    defaults = {one.name: getattr(kind(), one.name) for one in fields(kind) if one.init}
    if kind is EngineSampler:  # each engine's option has its own values
        assert node.keys() == defaults.keys() - {"url"}  # the URL is known only once the engine has started
        return
    assert node == {name: list(value) if isinstance(value, tuple) else value for name, value in defaults.items()}


@pytest.mark.parametrize("option", [o for o in OPTIONS if o.split("/")[0] in COMPONENT_GROUPS])
def test_feedback_refiner_and_arm_options_match_their_classes(option):
    node = OmegaConf.to_container(OmegaConf.load(CONF / f"{option}.yaml"))
    kind = resolve(node.pop("_target_"), "_target_")
    assert set(node) == {one.name for one in fields(kind)}
    group, name = option.split("/")
    if option == "refiner/own_samples":  # uses the class of refiner/finetuned with other arguments
        return
    if group != "feedback" or name in ("human", "scripted", "unit_tests", "llm", "mixed"):
        assert kind.name == name  # used if settings are built in Python, without an option
    if name not in ("annotator", "none", "shuffled", "mixed"):
        literals = {key: value for key, value in node.items() if "${" not in str(value)}
        assert literals.items() <= asdict(kind()).items()


# Default options, which run in the end-to-end tests.
DEFAULTS = {
    "data/mini",
    "model/mini",
    "feedback/annotator",
    "feedback/scripted",
    "refiner/finetuned",
    "refinements/model",
    "llm/reviewer",
    "sampler/hf",
    "executor/sandbox",
    "adapter/full",
    "optimizer/adamw",
    "trainer/auto",
    "logger/wandb",
    "logger/none",
    "scheduler/linear",
    "callbacks/default",
    "objective/sft",
    "datamodule/mbpp",
    "module/ilf",
    "module/refine",
    "paths/default",
    "extras/default",
}


@pytest.fixture(scope="module")
def shared_store(tmp_path_factory):
    """Return one store for all options, so that common stages run once."""
    return tmp_path_factory.mktemp("store")


@pytest.fixture(scope="module")
def annotations(tmp_path_factory):
    """Return a file of annotations with the paper's columns, by mini's annotator, for options that need human ones."""
    tasks = [t for t in tasks_from(mini.rows(), None, "paper")[0] if t.task_id in (*range(1, 11), *range(111, 351))]
    failing = wrong_programs(tasks)
    rows = [
        {
            "task_id": f.task_id,
            "Feedback": f.text,
            "original_model_completion": f.program,
            "unedited_annotator_completion": f.refinement,
        }
        for f in annotate(failing, {t.task_id: t for t in tasks}, mini.specifications(), 0)
    ]
    file = tmp_path_factory.mktemp("annotations") / "annotations.jsonl"
    file.write_text("\n".join(map(json.dumps, rows)))
    return file


RUN = [option for option in OPTIONS if option not in NOT_RUN and option not in DEFAULTS]
FEW = ["data.limit.test=4", "data.limit.refine=16", "data.limit.train=16", "training.epochs=1", "measure=[]"]
# One run tests an option of each of these groups.
FINE_TUNING_GROUPS = ("adapter", "optimizer", "scheduler", "callbacks", "logger", "trainer")


def test_a_run_completes_with_each_fine_tuning_option(small_stages, shared_store):
    groups = [[option for option in RUN if option.startswith(f"{group}/")] for group in FINE_TUNING_GROUPS]
    for options in itertools.zip_longest(*groups):
        chosen = [override(option) for option in options if option]
        results = small_stages(*chosen, f"store.dir={shared_store}", *FEW).run()
        assert results["status"] == "complete" and results["finetuned"]["n_tasks"] == 4, chosen


@pytest.mark.parametrize("option", [option for option in RUN if option.split("/")[0] not in FINE_TUNING_GROUPS])
def test_a_run_completes_with_each_other_option(option, small_stages, shared_store, annotations):
    read = [key for key in FEW if option != "refinements/none" or not key.startswith("training.")]
    extra = [override(option), f"store.dir={shared_store}", *read]
    if option in ("feedback/human", "refiner/few_shot"):
        extra += ["feedback=human", f"feedback.path={annotations}", "data.limit.prompt=null"]
    if option == "refiner/local":
        first = small_stages(*extra[1:])
        first.run()
        extra.append(f"refiner.path={first.folder / 'refiner'}")
    if option == "model/local":
        extra += [f"model.path={MINI}", "sampler.max_new_tokens=96", "training.lr=5e-4", "training.batch_size=8"]
    try:
        results = small_stages(*extra).run()
    except NoTrainingExamples:
        assert option == "refiner/few_shot"  # the mini model was not trained on worked examples, and may solve no task
        return
    assert results["status"] == "complete" and results["finetuned"]["n_tasks"] == 4
    if option == "refinements/none":
        assert results["training_task_ids"] == []
    if option == "feedback/human":
        # The file does not state which model wrote the programs, and they are not samples of this run.
        assert results["feedback_on_policy"] is None and results["counts"]["annotated"] > 20
    elif option.startswith("feedback/"):
        assert results["feedback_on_policy"] is True


def test_listed_options_and_the_tests_named_with_them_exist():
    assert set(NOT_RUN) <= set(OPTIONS) and set(OPTIONS) >= DEFAULTS
    named = set(re.findall(r"test_\w+\.py", " ".join(NOT_RUN.values())))
    assert named <= {file.name for file in (ROOT / "tests").glob("test_*.py")}


@pytest.mark.parametrize(
    "overrides",
    [
        [],
        ["refinements=gold", "training.policy.lr=1e-3", "data@transfer=humaneval", "data.limit.test=9"],
        ["+trainer.max_time='00:01:00'", "hydra/job_logging=none", "hydra.job.num=3", "feedback.transform=[drop]"],
    ],
)
def test_tests_compose_settings_as_hydra_does(overrides):
    """The fixture composes in two steps, the first of which is cached."""
    register()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        config = compose("config", ["output_dir=unused", *overrides], return_hydra_config=True)
    chosen = config.hydra.runtime.choices
    with flag_override(config, ["struct", "readonly"], False):
        del config["hydra"]
    for _ in range(2):
        assert compose_settings(*overrides) == settings_from(config, overrides, chosen=chosen)


def test_a_pickled_configuration_keeps_its_schema_in_another_process():
    """The jobs of a launcher unpickle the configuration."""
    register()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        config = compose("config")
    code = "import pickle, sys\nfrom omegaconf import OmegaConf\nfrom ilf.cli.config import Schema\n"
    code += "print(OmegaConf.get_type(pickle.load(sys.stdin.buffer)) is Schema)"
    environment = os.environ | {"PYTHONPATH": str(ROOT / "src")}
    done = subprocess.run(
        [sys.executable, "-c", code], input=pickle.dumps(config), capture_output=True, env=environment
    )
    assert done.stdout.decode().strip() == "True", done.stderr.decode()


# Variables that hold a group of settings, besides those named like the group. `self` stands for the group's class.
HOLDERS = {
    "data": ["self"],
    "feedback": ["self", "prompt"],
    "refiner": ["self", "phase"],
    "policy": ["phase"],
    "training": ["phase"],
    "refinements": ["self"],
    "refinement": ["prompt"],
    "llm": ["settings"],
    "sampler": ["self"],
    "executor": ["limits"],
    "evaluate": ["evaluation", "self"],
    "pretrain": ["settings"],
}


def test_every_setting_is_read_outside_the_checks():
    read = {pair for file in CONF.rglob("*.yaml") for pair in re.findall(r"\$\{(\w+)\.(\w+)\}", file.read_text())}
    for file in [*(ROOT / "src").rglob("*.py"), ROOT / "run.py"]:
        for node in ast.walk(ast.parse(file.read_text())) if file.parent.name != "checks" else ():
            if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load):
                read.add((getattr(node.value, "attr", getattr(node.value, "id", "")), node.attr))

    def keys(value, group="settings"):
        for one in fields(value):
            inner = getattr(value, one.name)
            yield group, one.name
            if is_dataclass(inner) and not isinstance(inner, Component):
                yield from keys(inner, one.name)

    holders = {(group, key): {group, *HOLDERS.get(group, ())} for group, key in keys(Settings())}
    unread = {(group, key) for (group, key), some in holders.items() if not {(one, key) for one in some} & read}
    # The limits are passed on as a mapping. The other one is a limit for a check.
    assert unread == {("limit", "refine"), ("settings", "select_min_programs")}


BAD = {
    "k above n": (["sampler.n=4", "evaluate.k=[1,10]"], r"evaluate\.k=\[1, 10\].*sampler\.n=4"),
    "negative temperature": (["sampler.temperature=-0.5"], r"sampler\.temperature"),
    "k above what is evaluated": (["evaluate.n=4", "evaluate.k=[1,10]"], r"evaluate\.k=\[1, 10\].*evaluate\.n=4"),
    "the same program many times": (["evaluate.temperature=0"], r"evaluate\.n=10.*evaluate\.n=1 'evaluate\.k=\[1\]'"),
    "greedy by one token": (["evaluate.top_k=1"], r"evaluate\.n=10.*evaluate\.n=1"),
    "fresh greedy draws": (
        ["evaluate.temperature=0", "evaluate.n=1", "evaluate.k=[1]", "evaluate.turns=1"],
        r"evaluate\.temperature=0.*not a control.*evaluate\.turns=0",
    ),
    "flash attention for what auto samples in 32 bits": (
        ["model.attention=flash_attention_2", "model.dtype=auto"],
        r"model\.dtype='auto'.*16 bits",
    ),
    "BOS in front of a chat": (["data.prompt=chat", "model.bos=true"], r"model\.bos=True.*chat template"),
    "a chat that a server does not take": (
        ["data.prompt=chat", "sampler=transformers_serve", "sampler.module=null"],
        r"data\.prompt='chat'.*token ids.*sampler=hf",
    ),
    "a chat for the transfer set alone": (
        ["data@transfer=jsonl", f"transfer.path={SOME_FILE}", "transfer.prompt=chat"],
        r"transfer\.prompt='chat'.*data\.prompt=chat",
    ),
    "less than cold": (["evaluate.temperature=-1"], r"evaluate\.temperature=-1"),
    "a sampler that does not sample": (["sampler.temperature=0"], r"sampler\.temperature=0"),
    "no samples": (["sampler.n=0", "evaluate.k=[]"], r"sampler\.n=0"),
    "missing data": (["data=mbpp", "data.path=nowhere.jsonl"], r"data\.path='nowhere\.jsonl'.*no such file"),
    "missing annotations": (
        ["feedback=human", "feedback.path=nowhere.jsonl"],
        r"feedback\.path='nowhere\.jsonl'.*no such file",
    ),
    "mbpp without annotations": (["data=mbpp"], r"feedback\.path=null"),
    "no model path": (["model=local"], r"model\.path=null.*folder"),
    "a model path without a config": (["model=local", "model.path=/"], r"model\.path='/'.*config\.json"),
    "a refiner path without a config": (["refiner=local", "refiner.path=/"], r"refiner\.path='/'.*config\.json"),
    "unknown stage": (["stages=[sampel]"], r"stages='sampel'.*zero_shot"),
    "unknown word": (["executor.compare=loosely"], r"executor\.compare='loosely'.*'exact' or 'approx'"),
    "a login": (["logger.mode=online"], r"logger\.mode='online'.*WANDB_API_KEY"),
    "human refinements without humans": (
        ["refinements=human", "feedback=unit_tests"],
        r"refinements='human'.*feedback",
    ),
    "no k": (["evaluate.k=[]"], r"evaluate\.k=\[\]"),
    "a script without a specification": (
        ["data=mbpp", "data.path=README.md", "feedback=scripted"],
        r"feedback='scripted'.*data=mini",
    ),
    "shuffled without an annotator": (["data=mbpp", "feedback=shuffled"], r"feedback\.path=null.*feedback=shuffled"),
    "one source mixed": (
        ["feedback=mixed", "feedback.sources=[scripted]"],
        r"feedback\.sources=\['scripted'\].*two or more",
    ),
    "too few shares": (
        ["feedback=mixed", "feedback.shares=[1]"],
        r"feedback\.shares=\[1.0\].*each of feedback\.sources",
    ),
    "no share above 0": (["feedback=mixed", "feedback.shares=[0,0]"], r"feedback\.shares=\[0.0, 0.0\].*not all 0"),
    "shares of one source": (
        ["+feedback.shares=[1,1]"],
        r"feedback\.shares=.*not an argument of ilf\.feedback.*Annotator",
    ),
    "an unknown source": (
        ["feedback=mixed", "feedback.sources=[human,robot]"],
        r"feedback\.sources\[1\]='robot': must be one of human, scripted, unit_tests, llm",
    ),
    "people mixed in without a file": (
        ["feedback=mixed", "feedback.sources=[human,unit_tests]"],
        r"feedback\.path=null.*feedback=mixed needs an annotation file",
    ),
    "the script mixed in on MBPP": (
        ["data=mbpp", "feedback=mixed", "feedback.sources=[scripted,unit_tests]"],
        r"feedback\.sources=.*scripted needs data=mini",
    ),
    "an unknown transform": (
        ["feedback.transform=[mix]"],
        r"feedback\.transform='mix'.*shuffle, one_bug, no_code, drop",
    ),
    "a file for generated data": (["+data.path=mbpp.jsonl"], r"data\.path='mbpp.jsonl'.*not an argument of .*Mini"),
    "rounds on people's feedback": (
        ["rounds=2", "feedback=human", f"feedback.path={SOME_FILE}"],
        r"rounds=2.*feedback=scripted.*unit_tests",
    ),
    "rounds of nothing": (["rounds=2", "refinements=none"], r"rounds=2.*refinements=none"),
    "no round": (["rounds=0"], r"rounds=0"),
    "another model without an endpoint": (["refinements=llm"], r"llm\.model=null.*llm\.url=.*llm\.path"),
    "an endpoint without a model": (
        ["refinements=llm", "llm.url=http://localhost:1/v1"],
        r"llm\.model=null.*llm\.model=NAME",
    ),
    "stored answers about later rounds": (
        ["feedback=llm", "llm.path=README.md", "rounds=2", "llm.shots=0"],
        r"llm\.path='README\.md'.*yet to sample.*rounds=1",
    ),
    "stored answers at test time": (
        ["llm.path=README.md", "evaluate.turns=1", "evaluate.feedback=llm", "llm.shots=0"],
        r"llm\.path='README\.md'.*yet to sample.*evaluate\.turns=0",
    ),
    "missing answers": (["refinements=llm", "llm.path=nowhere"], r"llm\.path='nowhere'.*llm_answers"),
    "a server without an address": (["sampler=openai"], r"sampler\.url=null.*sampler\.url=http"),
    "an address without a server": (
        ["+sampler.url=http://localhost:1/v1"],
        r"sampler\.url=.*not an argument of .*HFSampler",
    ),
    "fields of no request": (["+sampler.extra.top_k=0"], r"sampler\.extra=.*not an argument of .*HFSampler"),
    "words of another model that is nowhere": (
        ["feedback=llm"],
        r"llm\.model=null.*feedback=llm.*llm\.url=.*llm\.path",
    ),
    "another model's folder without a config": (["feedback=llm", "llm.model=/"], r"llm\.model='/'.*config\.json"),
    "another model at no address": (["feedback=llm", "llm.model=m", "llm.url=here"], r"llm\.url='here'.*http://"),
    "worked examples that nobody wrote": (
        ["data=mbpp", f"data.path={SOME_FILE}", "feedback=llm", "llm.model=m"],
        r"llm\.shots=1.*ids 1 to 10.*feedback\.path.*llm\.shots=0",
    ),
    "missing annotations for worked examples": (
        ["feedback=llm", "llm.model=m", "feedback.path=nowhere"],
        r"feedback\.path='nowhere'.*no such file",
    ),
    "an unknown placeholder": (
        ["llm.feedback.question='{text} {program} {gold}'"],
        r"llm\.feedback\.question='\{gold\}'.*\{program\}.*\{detail\}.*conf/llm/reviewer\.yaml",
    ),
    "a placeholder of another use": (["llm.refinement.question='{text} {program} {detail}'"], r"refinement\.question="),
    "a missing placeholder": (
        ["llm.feedback.question='{text}'"],
        r"llm\.feedback\.question=''.*must contain \{program\}",
    ),
    "an answer without the program": (["llm.refinement.answer='{feedback}'"], r"refinement\.answer=.*\{refinement\}"),
    "a password in an address": (
        ["feedback=llm", "llm.model=m", "llm.url='http://me:pw1@host/v1'"],
        r"llm\.url='\(not shown\)'.*OPENAI_API_KEY",
    ),
    "a key in a server's address": (
        ["sampler=openai", "sampler.url='http://host/v1?key=pw1'"],
        r"sampler\.url='\(not shown\)'.*password",
    ),
    "choosing by Test": (["select=4"], r"select=4.*every setting on Test.*stages="),
    "choosing by less than nothing": (["select=-1"], r"select=-1"),
    "worked examples of no task": (
        ["refiner=few_shot", "data.limit.prompt=0"],
        r"refiner\.shots=1.*data\.limit\.prompt=0",
    ),
    "no limit of another data set": (["data@transfer=humaneval", "transfer.limit.test=0"], r"transfer\.limit\.test=0"),
    "an unknown prompt of another data set": (
        ["data@transfer=humaneval", "transfer.prompt=mine"],
        r"transfer\.prompt='mine'.*paper",
    ),
    "nothing to train on": (["data=humaneval"], r"data='humaneval'.*data@transfer=humaneval"),
    "a file for another data set": (["data@transfer=humaneval", "+transfer.path=x"], r"transfer\.path='x'"),
    "a missing file of another data set": (["data@transfer=mbpp", "transfer.path=x"], r"transfer\.path='x'.*no such"),
    "the same data set twice": (["data@transfer=mini"], r"transfer='mini'.*humaneval"),
    "an unknown measure": (["measure=[kll]"], r"measure='kll'.*weight_change, kl, perplexity"),
    "an unknown scoring": (["executor.scoring=theirs"], r"executor\.scoring='theirs'.*'as_written' or 'paper'"),
    "full on a quantised base": (["training.quantize=nf4"], r"training\.quantize='nf4'.*adapter=qlora"),
    "an unknown quantisation": (["adapter=qlora", "training.quantize=fp4"], r"training\.quantize='fp4'.*nf4, int8"),
    "an adapter that can't be merged": (
        ["+adapter._target_=peft.PromptTuningConfig", "+adapter.num_virtual_tokens=4"],
        r"adapter\._target_='peft\.PromptTuningConfig'.*merged.*adapter=lora",
    ),
    "an unknown attention": (["model.attention=linear"], r"model\.attention='linear'.*sdpa"),
    "flash attention in 32 bits": (
        ["model.attention=flash_attention_2", "model.dtype=bfloat16", "trainer.precision=32-true"],
        r"trainer\.precision='32-true'.*flash_attention_2",
    ),
    "no training tasks": (["feedback.limit=0"], r"feedback\.limit=0"),
    "no process": (["trainer=ddp", "trainer.devices=0"], r"trainer\.devices=0"),
    "processes that nothing divides": (["trainer.devices=2"], r"trainer\.devices=2.*trainer=ddp"),
    "8-bit states in parts": (["trainer=fsdp", "optimizer=adamw_8bit"], r"optimizer='bitsandbytes.*trainer=ddp"),
    "pretraining together": (["experiment=mini/pretrain", "trainer=ddp"], r"trainer='ddp'.*trainer=auto"),
    "no port": (["mode=annotate", "annotate.port=0"], r"annotate\.port=0.*65535"),
    "answers that are no JSON lines": (["mode=annotate", "annotate.path=a.csv"], r"annotate\.path='a\.csv'.*\.jsonl"),
    "answers in no folder": (
        ["mode=annotate", "annotate.path=nowhere/a.jsonl"],
        r"annotate\.path='nowhere/a\.jsonl'.*no folder nowhere",
    ),
    "annotating what is only evaluated": (
        ["mode=annotate", "data=humaneval", "stages=[zero_shot]"],
        r"data='humaneval'",
    ),
    "no limit": (["data.limit.test=0"], r"data\.limit\.test=0"),
}


@pytest.mark.parametrize("name", BAD)
def test_invalid_settings_are_errors_that_state_what_is_allowed(name, monkeypatch, tmp_path):
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    overrides, message = BAD[name]
    with pytest.raises(InputError, match=message) as error:
        compose_settings(*overrides)
    assert "pw1" not in str(error.value)


def test_an_existing_annotate_path_must_contain_json_lines(tmp_path):
    (tmp_path / "a.jsonl").write_text("one\ntwo\n")
    with pytest.raises(InputError, match=r"a\.jsonl:1=.*JSON"):
        compose_settings("mode=annotate", f"annotate.path={tmp_path}/a.jsonl")


def test_overriding_what_the_arm_sets_is_an_error(tmp_path, monkeypatch):
    (tmp_path / "arm").mkdir()
    own = "# @package _global_\ndefaults: [ilf_no_words, _self_]\narm: mine\ntraining: {lr: 2}\n"
    (tmp_path / "arm" / "mine.yaml").write_text(own)
    monkeypatch.setenv("ILF_CONFIG_PATH", str(tmp_path))

    def hydra(*overrides):
        register()
        with initialize_config_dir(str(CONF), version_base="1.3"):
            return compose("config", [*overrides, "hydra.job.num=0"], return_hydra_config=True).hydra

    for arm, override, group in [
        ("gold", "refinements=human", "refinements"),
        ("refiner_without_feedback", "feedback=shuffled", "feedback"),
        ("fresh_samples", "refiner=finetuned", "refiner"),
        ("ilf_no_words", "feedback.transform=[]", r"feedback\.transform"),
        ("ilf_shuffled_words", "feedback={apply: refine}", "feedback"),
        ("llm_2shot", "llm.shots=1", r"llm\.shots"),
        ("mine", "refinements=gold", "refinements"),
        ("mine", "feedback.transform=[one_bug]", r"feedback\.transform"),
    ]:
        with pytest.raises(InputError, match=rf"{group}=.*is set by arm={arm}"):
            check_arm(hydra("seed=1", override, f"arm={arm}"))
    check_arm(hydra("arm=gold", "feedback=unit_tests", "feedback.limit=3"))
    check_arm(hydra("arm=ilf_no_words", "feedback=unit_tests", "feedback.limit=3", "feedback.choose=random"))
    check_arm(hydra("arm=mine", "training.lr=1"))
    check_arm(hydra("refinements=gold"))
    with pytest.raises(InputError, match=r"arm='\[gold,ilf\]'.*one arm"):
        check_arm(hydra("arm=[gold,ilf]"))


def test_online_wandb_with_an_api_key_and_seed_0_are_accepted(monkeypatch):
    monkeypatch.setenv("WANDB_API_KEY", "x")
    check(compose_settings("logger.mode=online", "seed=0"))


def run(*arguments: str):
    start = time.monotonic()
    done = subprocess.run(
        [sys.executable, str(ROOT / "run.py"), *arguments], text=True, capture_output=True, cwd="/tmp"
    )
    return done, time.monotonic() - start


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["data=mbppp"], "Could not find 'data/mbppp'"),
        (["sampler.n=many"], "sampler.n"),
        (["sampler.temprature=1"], "temprature"),
        (["sampler.n=2", "evaluate.k=[1,3]"], "error: evaluate.k=[1, 3]"),
        (["seed=null", "data@transfer=null"], "error: data@transfer=null: must be the name of an option"),
    ],
)
def test_invalid_overrides_exit_with_a_message_and_no_traceback(arguments, message, tmp_path):
    done, _ = run(*arguments, f"hydra.run.dir={tmp_path}")
    assert done.returncode != 0 and message in done.stdout + done.stderr
    assert "Traceback" not in done.stderr


def test_mbpp_without_the_hub_is_an_error_that_suggests_data_path(monkeypatch, tmp_path):
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(InputError, match=r"data\.path=null.*Hub.*data\.path=mbpp\.jsonl"):
        build(compose_settings("data=mbpp", "logger=none", f"feedback.path={SOME_FILE}", f"store.dir={tmp_path}"))


def test_unavailable_flash_attention_is_an_error_when_a_run_is_built(small_stages, monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(InputError, match=r"model\.attention='flash_attention_2'.*flash-attn.*sdpa"):
        small_stages("model.attention=flash_attention_2", "model.dtype=bfloat16", "trainer.precision=bf16-mixed")

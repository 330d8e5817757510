"""Fixtures: the published data if it is available, and runs on the mini model with a tiny budget."""

from __future__ import annotations

import ast
import copy
import functools
import gc
import os
import random
import secrets
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from omegaconf import DictConfig, flag_override

ROOT = Path(__file__).parent.parent
CONF = ROOT / "conf"
MINI = ROOT / "src" / "ilf" / "models" / "mini"
# MBPP and the ILF paper's annotations are not part of the project. Tests that need them are skipped without them.
DATA = Path(os.environ.get("ILF_TEST_DATA", ROOT.parent / "shared" / "data"))
os.environ.setdefault("WANDB_SILENT", "true")
os.environ.pop("ILF_CONFIG_PATH", None)  # the user's own options must not affect the tests
os.environ.setdefault("OMP_NUM_THREADS", "1")  # two workers share the cores
# Real chat models are not part of the project either. They are folders that transformers loads.
MODELS = Path(os.environ.get("ILF_TEST_MODELS", Path.home() / ".cache" / "ilf-models"))
sys.path.insert(0, str(ROOT / "src"))

import warm  # noqa: E402

from ilf.build import build  # noqa: E402
from ilf.cli.config import register, settings_from  # noqa: E402
from ilf.cli.search_path import VARIABLE  # noqa: E402
from ilf.components import Component  # noqa: E402
from ilf.settings import Settings  # noqa: E402
from ilf.stages import Stages  # noqa: E402
from ilf.tasks import mini  # noqa: E402
from ilf.tasks.mini_grammar import draw_names  # noqa: E402
from ilf.training.mini_corpus import with_mistakes  # noqa: E402
from ilf.types import Program, Task, Verdict  # noqa: E402

# Ray reads these variables when it is imported. Without them its ports would be open to the network.
os.environ |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(16)}

collect_ignore = ["trl_losses.py"]  # a script that needs another library
_LONGEST = (
    "test_studies",
    "test_end_to_end",
    "test_distributed",
    "test_sandbox",
    "test_annotation",
    "test_cluster",
    "test_memory",
    "test_samplers",
)


@pytest.fixture(autouse=True, scope="module")
def frozen_imports() -> None:
    """Keep garbage collections from traversing imported modules and earlier tests, which stay in memory."""
    gc.collect()
    gc.freeze()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Start with the slowest files: each file runs on one worker, so a slow one should not be the last."""
    items.sort(key=lambda item: _LONGEST.index(item.path.stem) if item.path.stem in _LONGEST else len(_LONGEST))


def _data_file(name: str) -> Path:
    if not (DATA / name).is_file():
        pytest.skip(f"{DATA / name} does not exist: set ILF_TEST_DATA to a folder that contains {name}")
    return DATA / name


@pytest.fixture(scope="session")
def mbpp_file() -> Path:
    return _data_file("mbpp/mbpp.jsonl")


@pytest.fixture(scope="session")
def annotations_file() -> Path:
    return _data_file("ilf/annotations.jsonl")


def _model(name: str) -> Path:
    if not (MODELS / name / "config.json").is_file():
        pytest.skip(f"{MODELS}/{name} does not exist: set ILF_TEST_MODELS to a folder that contains {name}")
    return MODELS / name


@pytest.fixture(scope="session")
def chat_model() -> Path:
    """Return the folder of a real small chat model."""
    return _model("smollm2-135m")


@pytest.fixture(scope="session")
def real_model() -> Path:
    """Return the folder of a real code model with half a billion parameters."""
    return _model("qwen-coder-0.5b")


def compose_settings(*overrides: str, sweep: bool = False) -> Settings:
    """Compose the settings like the command does, but outside a Hydra job.

    Hydra chooses the options of all groups first, and then sets single values. Many tests choose the same options, so
    the first step is cached.
    """
    register()
    parsed = OverridesParser.create().parse_overrides(list(overrides))
    options = [one for one in parsed if one.is_sweep_override() or one.is_hydra_override() or _names_a_group(one)]
    config = copy.deepcopy(_composed(os.environ.get(VARIABLE), *(str(one.input_line) for one in options)))
    ConfigLoaderImpl._apply_overrides_to_config([one for one in parsed if one not in options], config)
    chosen = config.hydra.runtime.choices
    with flag_override(config, ["struct", "readonly"], False):
        del config["hydra"]
    return settings_from(config, overrides, sweep, chosen)


def _names_a_group(override: Override) -> bool:
    key = override.key_or_group
    return override.package is not None or "/" in key or (CONF / key).is_dir()


@functools.cache
def _composed(folders: str | None, *options: str) -> DictConfig:
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return compose("config", overrides=["output_dir=unused", *options], return_hydra_config=True)


def wrong_programs(tasks: list[Task]) -> dict[int, list[Program]]:
    """Return incorrect programs with one to three mistakes for each task, as a policy may write them."""
    failing, specifications = {}, mini.specifications()
    for task in tasks:
        specification, rng = specifications[task.task_id], random.Random(task.task_id)
        (arg,) = ast.parse(task.code).body[0].args.args
        names, right = draw_names(specification, arg.arg, rng), specification.sketch(short=rng.random() < 0.2)
        sketches = [with_mistakes(specification, right, rng) for _ in range(6)]
        texts = [task.prompt + s.body(names) for s in sketches if s != right] + ["def f(:"]
        if len(texts) > 1:
            failing[task.task_id] = [
                Program(task.task_id, task.split, i, 0, "", "", text, Verdict("failed")) for i, text in enumerate(texts)
            ]
    return failing


# Components, as in the options of conf/.
ADAMW, ADAMW_8BIT = Component("torch.optim.AdamW", {"weight_decay": 0.0}), Component("bitsandbytes.optim.AdamW8bit")
OPTIMIZERS = {
    "adamw": ADAMW,
    "adamw_8bit": ADAMW_8BIT,
    "paged_adamw_8bit": Component("bitsandbytes.optim.PagedAdamW8bit"),
}
CPU = Component("pytorch_lightning.Trainer", {"accelerator": "cpu", "precision": "32-true", "gradient_clip_val": 1.0})
CPU = CPU.having(log_every_n_steps=1, enable_model_summary=False)


def lora(r: int = 4, alpha: int = 32, **more: object) -> Component:
    own = {"r": r, "lora_alpha": alpha, "target_modules": "all-linear", "task_type": "CAUSAL_LM"}
    return Component("peft.LoraConfig", {**own, **more})


# Overrides for a few tasks and samples, of which the mini model solves some and fails others.
SMALL = [
    "sampler.n=4",
    "evaluate.k=[1,4]",
    "data.limit.prompt=2",
    "data.limit.test=8",
    "data.limit.refine=30",
    "data.limit.train=30",
]


@pytest.fixture
def store(tmp_path: Path) -> Path:
    return tmp_path / "store"


@pytest.fixture
def small_stages(store: Path, tmp_path: Path) -> Iterator[Callable[..., Stages]]:
    """Return a function that builds a run on mini in this process, with a small budget."""
    made: list[Stages] = []

    def make(*overrides: str) -> Stages:
        own = ["logger=none", f"store.dir={store}", f"output_dir={tmp_path / f'run{len(made)}'}"]
        made.append(build(compose_settings(*SMALL, *own, *overrides)))
        return made[-1]

    yield make
    for stages in made:
        stages.close()


@pytest.fixture
def cli(tmp_path: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Return a function that runs run.py like a user, in the test's own folder."""

    return lambda *arguments: warm.run(ROOT / "run.py", arguments, tmp_path)


SERVER = """
import sys
from transformers.cli.serve import Serve

Serve(port=int(sys.argv[1]), device="cpu", continuous_batching=True, cb_num_blocks=128, cb_max_batch_tokens=256)
"""


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Yield the address of `transformers serve`, which loads the model that a request names."""
    pytest.importorskip("fastapi")
    pytest.importorskip("uvicorn")
    folder = tmp_path_factory.mktemp("server")
    (folder / "serve.py").write_text(SERVER)
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    process = warm.start(folder / "serve.py", [str(port)], folder, folder / "printed")
    for _ in range(600):
        try:
            urllib.request.urlopen(f"http://localhost:{port}/health")
            break
        except OSError:
            assert process.is_alive(), (folder / "printed.err").read_text()
            time.sleep(0.1)
    yield f"http://localhost:{port}/v1"
    process.kill()

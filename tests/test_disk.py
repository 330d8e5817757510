"""The folders that a run writes to: unwritable folders, plans of the disk space, and errors on full disks."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import MINI, ROOT, SMALL, compose_settings
from transformers import AutoConfig

from ilf.build import build
from ilf.disk import check_writable
from ilf.files import JsonLines, write_atomically
from ilf.models.load import load_model, load_tokenizer, save
from ilf.resources import Budget
from ilf.training.trainer import _Checkpoints
from ilf.types import InputError


@pytest.fixture
def mounted(tmp_path):
    """A function that mounts a real file system of a given size in bytes."""
    made = []

    def mount(size):
        folder = tmp_path / f"disk{len(made)}"
        folder.mkdir()
        command = ["mount", "-t", "tmpfs", "-o", f"size={-(-size // 4096) * 4096}", "tmpfs", str(folder)]
        try:
            done = subprocess.run(command, capture_output=True, text=True)
        except FileNotFoundError:
            pytest.skip("there is no mount here")
        if done.returncode:
            pytest.skip(f"mounting needs root: {done.stderr}")
        made.append(folder)
        return folder

    yield mount
    for folder in made:
        subprocess.run(["umount", "-l", str(folder)], check=True)


UNWRITABLE = {
    "a file": lambda folder: ROOT / "README.md",
    "below a file": lambda folder: ROOT / "README.md" / "x" / "y",
    "a read-only place": lambda folder: Path("/proc/x"),
    "a link to nothing": lambda folder: (folder / "link").symlink_to(folder / "none") or folder / "link",
    "below a link to nothing": lambda folder: (folder / "link").symlink_to("/proc/none") or folder / "link" / "x",
    "a name too long": lambda folder: folder / ("x" * 300) / "y",
    "a link to itself": lambda folder: (folder / "link").symlink_to(folder / "link") or folder / "link" / "x",
}


@pytest.mark.parametrize("key", ["store.dir", "output_dir"])
@pytest.mark.parametrize("name", UNWRITABLE)
def test_unwritable_folders_are_rejected_at_startup(name, key, tmp_path):
    place = UNWRITABLE[name](tmp_path)
    own = {"store.dir": tmp_path / "store", "output_dir": tmp_path / "run"} | {key: place}
    with pytest.raises(InputError, match="the system says: ") as error:
        build(compose_settings(*SMALL, "logger=none", *(f"{name}={folder}" for name, folder in own.items())))
    assert error.value.args[:2] == (key, str(place))


def test_check_writable_leaves_no_files_or_folders(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for folder in (tmp_path, tmp_path / "a" / "b", Path("c") / "d", Path()):
        check_writable("store.dir", folder)
    assert list(tmp_path.iterdir()) == []


def test_the_disk_module_does_not_import_torch():
    code = f"import sys; sys.path.insert(0, {str(ROOT / 'src')!r}); import ilf.disk; print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "False\n"


def fill(folder, left):
    with (folder / "rest").open("wb") as file:
        space = os.statvfs(folder)
        file.write(bytes(space.f_bavail * space.f_frsize - left))


WRITERS = {
    "rows": lambda folder: JsonLines(folder / "rows.jsonl").append([{"x": "y" * 100_000}]),
    "a mark": lambda folder: write_atomically(folder / "done.json", "x" * 100_000),
    "a model": lambda folder: save(load_model(MINI, torch.float32), load_tokenizer(MINI), folder / "model"),
    "a checkpoint": lambda folder: _Checkpoints().save_checkpoint(
        {"state_dict": {"x": torch.zeros(1_000_000)}}, folder / "last.ckpt"
    ),
}
PATHS = {"rows": "rows.jsonl", "a mark": "done.json", "a model": "model.unfinished", "a checkpoint": "last.ckpt"}


@pytest.mark.parametrize("left", [0, 40_960])
@pytest.mark.parametrize("name", WRITERS)
def test_full_disk_errors_name_the_path(name, left, mounted):
    folder = mounted(10**6)
    fill(folder, left)
    with pytest.raises(OSError, match="No space left on device") as error:
        WRITERS[name](folder)
    assert PATHS[name] in str(error.value) and str(folder) in str(error.value)


def test_full_disk_errors_of_the_tokenizer_name_the_path(mounted):
    """The tokenizer is written after the weights, by another library."""
    folder = mounted(8 * 10**6)
    fill(folder, (MINI / "model.safetensors").stat().st_size + 40_960)
    with pytest.raises(OSError, match=r"No space left on device: .*model\.unfinished"):
        WRITERS["a model"](folder)


ONE = ["training.policy.epochs=1", "training.refiner.epochs=1"]
TWO = ["training.policy.epochs=2", "training.refiner.epochs=2"]  # a checkpoint replaces another
KINDS = {
    "full": TWO,
    "lora": [*ONE, "adapter=lora"],
    "8 bits": [*ONE, "optimizer=adamw_8bit"],
    "16 bits": [*TWO, "trainer.precision=bf16-true"],
    "saved in 16 bits": [*ONE, "save.dtype=bfloat16"],
    "two rounds": [*TWO, "rounds=2", "feedback=unit_tests"],
}
QUICK = ("full",)
ALLOWANCE = 4 * 10**6  # for files that are not planned: rows, keys, verdicts


def _stages(store, output, *own):
    own = [*SMALL, "logger=none", "measure=[]", f"store.dir={store}", f"output_dir={output}", *own]
    return build(compose_settings(*own))


@pytest.mark.parametrize("name", [pytest.param(k, marks=[] if k in QUICK else pytest.mark.slow) for k in KINDS])
def test_the_planned_disk_space_is_sufficient_and_necessary(name, mounted, tmp_path):
    need, _ = Budget(compose_settings(*KINDS[name]), AutoConfig.from_pretrained(MINI), 50).disk()
    with pytest.raises(InputError, match=r"store\.dir=.*models and checkpoints need .* GB .*store\.dir=FOLDER"):
        _stages(mounted(need - 4096) / "store", tmp_path / "run", *KINDS[name])
    disk = mounted(need + ALLOWANCE)
    assert _stages(disk / "store", disk / "run", *KINDS[name]).run()["status"] == "complete"
    less = mounted(int(0.9 * need))
    with pytest.raises(OSError, match=f"No space left on device: '{less}/"):
        _stages(less / "store", less / "run", *KINDS[name], "memory=warn").run()


def test_space_checks_cover_only_what_each_folder_will_store(mounted, tmp_path, caplog):
    small = mounted(10**6)
    _stages(small / "store", small / "run", "stages=[zero_shot,sample]")
    _stages(small / "store", small / "run", "refinements=none")
    with pytest.raises(InputError, match=r"output_dir=.*models and checkpoints"):
        _stages(tmp_path / "store", small / "run")
    with caplog.at_level("WARNING"):
        _stages(small / "store", tmp_path / "run", "memory=warn")
        assert "store.dir=" in caplog.text
        caplog.clear()
        (small / "store" / "train_refiner" / "abc").mkdir(parents=True)  # a training that the run may reuse
        _stages(small / "store", tmp_path / "run")
        assert "store.dir=" in caplog.text
    with pytest.raises(InputError, match=r"store\.dir="):
        _stages(small / "store", tmp_path / "run", "store.reuse=false")

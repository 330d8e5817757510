from __future__ import annotations

import json
import sys
from pathlib import Path

import warm

from benchmarks.sampling import STOP
from ilf.tasks.prompts import ended

SCRIPT = Path(__file__).resolve().parent.parent / "benchmarks" / "sampling.py"
SMALL = ["--tasks", "2", "--n", "3", "--batch-size", "4", "--limit", "6", "--rounds", "1"]
PEERS = ["ours", "other_dtype", "generate", "continuous"]

# A fake vLLM that returns its settings in place of programs, and prints to stdout like an engine.
ENGINE = """
class SamplingParams:
    def __init__(self, **settings):
        self.settings = settings

class LLM:
    def __init__(self, model, **options):
        print("loading", model)
        self.options = options

    def reset_prefix_cache(self):
        print("reset")

    def generate(self, prompts, settings, use_tqdm):
        asked = {key: settings.settings[key] for key in ("temperature", "max_tokens")}
        asked |= {"max_num_seqs": self.options["max_num_seqs"], "dtype": self.options["dtype"]}
        assert "\\n#" not in settings.settings["stop"] and "\\nx" in settings.settings["stop"]
        texts = [type("", (), {"text": repr(asked)})] * settings.settings["n"]
        open("asked", "a").write(f"{len(prompts)} {len(texts)} {asked}\\n")
        return [type("", (), {"outputs": texts})] * len(prompts)
"""


def test_peers_sample_equally_many_programs_under_one_token_limit(tmp_path):
    done = warm.run(SCRIPT, ["--peers", *PEERS, *SMALL], tmp_path)
    assert done.returncode == 0, done.stderr
    lines = [line for line in done.stdout.splitlines() if line.startswith("round 1: ")]
    assert [line.split()[2] for line in lines] == PEERS
    assert all("(6 programs, " in line for line in lines)
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["ours_over"].keys() == {*PEERS} - {"ours"}
    # The limit is 6, but a text may have more tokens when it is encoded again.
    assert all(0 < count <= 8 for count in found["tokens_a_program"].values())


def test_engine_in_another_environment_gets_the_same_settings(tmp_path, monkeypatch):
    (tmp_path / "vllm.py").write_text(ENGINE)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    done = warm.run(SCRIPT, ["--peers", "ours", "--vllm", sys.executable, "--temperature", "0.7", *SMALL], tmp_path)
    assert done.returncode == 0, done.stderr
    asked = {"temperature": 0.7, "max_tokens": 6, "max_num_seqs": 4, "dtype": "float32"}
    assert (tmp_path / "asked").read_text().splitlines() == [f"2 3 {asked}"] * 2  # the first call is the warm-up
    assert json.loads(done.stdout.splitlines()[-1])["ours_over"].keys() == {"vllm"}


def test_engine_that_does_not_start_ends_the_benchmark(tmp_path, monkeypatch):
    (tmp_path / "vllm.py").write_text("raise RuntimeError('no such processor')")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    done = warm.run(SCRIPT, ["--peers", "ours", "--vllm", sys.executable, *SMALL], tmp_path)
    assert done.returncode == 1
    assert "no such processor" in done.stderr and "vllm exited with status 1" in done.stderr


def test_stop_strings_of_engines_match_our_end_of_program_rule():
    assert all(ended("    return x" + stop) for stop in STOP)
    unfinished = "    if x:\n\n# why\n        return x\n\t"
    assert not ended(unfinished) and not any(stop in unfinished for stop in STOP)

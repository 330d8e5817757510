"""Every sampler samples from the model's distribution. ServedSampler is tested with a real server on localhost."""

import json
import shutil
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import openai
import pytest
import torch
from conftest import CPU, MINI
from transformers import GenerationConfig

from ilf.models import decoding
from ilf.models.batches import choose
from ilf.models.load import load_model, load_tokenizer
from ilf.models.prefill import prefill
from ilf.models.tokens import encode_prompts
from ilf.sampling import ContinuousSampler, HFSampler, Sampler, ServedSampler, continuous, hf
from ilf.tasks import mini as mini_tasks
from ilf.tasks.mbpp import tasks_from
from ilf.tasks.prompts import cut
from ilf.training import ILFModule, MBPPDataModule, UnitTestCallback
from ilf.training.mbpp_datamodule import Contents
from ilf.training.trainer import make_trainer
from ilf.training.unit_test_callback import kept_samples
from ilf.types import Draw, InputError, Task, derive_seed

N, FEW = 300, 60
PROMPT = tasks_from(mini_tasks.rows()[10:11], None, "paper")[0][0].prompt
PLAN = [Draw(11, "test", i, derive_seed(0, i), PROMPT, PROMPT) for i in range(N)]
TOKENIZER = load_tokenizer(MINI)
SETTINGS = {"temperature": 0.8, "max_new_tokens": 64, "batch_size": 100}


@pytest.fixture(scope="module")
def mini():
    return load_model(MINI, torch.float32), load_tokenizer(MINI)


@pytest.fixture(scope="module")
def reference(mini) -> list[str]:
    """Return programs that transformers' own `generate` samples."""
    model, tokenizer = mini
    inputs = tokenizer(PROMPT, return_tensors="pt", add_special_tokens=False)
    config = GenerationConfig(
        do_sample=True, temperature=0.8, top_k=0, top_p=1.0, max_new_tokens=64, num_return_sequences=N,
        eos_token_id=model.generation_config.eos_token_id, pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip
    torch.manual_seed(0)
    rows = model.generate(**inputs, generation_config=config)[:, inputs["input_ids"].shape[1] :]
    return [cut(text) for text in tokenizer.batch_decode(rows, skip_special_tokens=True)]


def p_value(a: list[str], b: list[str]) -> float:
    """Return the p-value of a chi-squared test of homogeneity over whole programs. Rare programs share a cell."""
    left, right = Counter(a), Counter(b)
    common = {text for text in left | right if left[text] + right[text] >= 10}
    cells = [(left[t], right[t]) for t in common]
    cells.append((len(a) - sum(x for x, _ in cells), len(b) - sum(y for _, y in cells)))
    share = len(a) / (len(a) + len(b))
    expected = [(x, share * (x + y)) for x, y in cells] + [(y, (1 - share) * (x + y)) for x, y in cells]
    chi2 = sum((found - wanted) ** 2 / wanted for found, wanted in expected if wanted)
    return float(torch.special.gammaincc(torch.tensor((len(cells) - 1) / 2), torch.tensor(chi2 / 2)))


def test_the_statistical_test_detects_another_temperature(mini, reference):
    other = HFSampler(**SETTINGS | {"temperature": 1.2})
    assert p_value(reference, [text for _, text in other.sample(*mini, PLAN)]) < 1e-4


def test_local_samplers_decode_greedily_at_temperature_0(mini):
    model, tokenizer = mini
    inputs = tokenizer(PROMPT, return_tensors="pt", add_special_tokens=False)
    config = GenerationConfig(
        do_sample=False, max_new_tokens=64, eos_token_id=model.generation_config.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip
    (row,) = model.generate(**inputs, generation_config=config)[:, inputs["input_ids"].shape[1] :]
    greedy = cut(tokenizer.decode(row, skip_special_tokens=True))
    for kind in (HFSampler, ContinuousSampler):
        found = kind(**SETTINGS | {"temperature": 0.0, "batch_size": 4}).sample(model, tokenizer, PLAN[:4])
        assert [text for _, text in found] == [greedy] * 4


def test_top_k_samples_only_the_k_most_likely_tokens(mini):
    logits = torch.tensor([[0.0, 3.0, 2.0, 1.0, 2.5]]).expand(2000, 5)
    uniform = torch.arange(2000) / 2000
    drawn = Counter(choose(logits, uniform, 1.0, 3).tolist())
    expected = torch.softmax(torch.tensor([3.0, 2.0, 2.5]), 0).tolist()
    assert [drawn[i] / 2000 for i in (1, 2, 4)] == pytest.approx(expected, abs=2e-3) and set(drawn) == {1, 2, 4}
    assert Counter(choose(logits, uniform, 1.0, 9).tolist()) == Counter(choose(logits, uniform, 1.0).tolist())
    assert set(choose(logits, uniform, 5.0, 1).tolist()) == set(choose(logits, uniform, 0.0).tolist()) == {1}
    assert choose(torch.full((1, 5), float("nan")), uniform[:1], 0.0).tolist() == [-1]
    narrow, wide = (
        Counter(text for _, text in HFSampler(**SETTINGS | {"top_k": k}).sample(*mini, PLAN[:100])) for k in (2, 0)
    )
    assert 1 < len(narrow) < len(wide)


def test_hf_sampler_matches_the_distribution_of_generate(mini, reference):
    found = dict(HFSampler(**SETTINGS).sample(*mini, PLAN))
    assert set(found) == set(PLAN) and p_value(reference, list(found.values())) > 1e-3


def test_continuous_sampler_samples_each_draw_once_and_matches_generate(mini, reference):
    found = list(ContinuousSampler(**SETTINGS).sample(*mini, PLAN[:FEW]))
    assert len(found) == FEW and {draw for draw, _ in found} == set(PLAN[:FEW])
    assert p_value(reference, [text for _, text in found]) > 1e-3


def test_a_run_with_continuous_batching_solves_some_tasks(small_stages):
    results = small_stages("sampler=continuous", "stages=[zero_shot]", "sampler.max_new_tokens=64").run()
    assert results["zero_shot"]["n_tasks"] == 8 and 0 < results["zero_shot"]["pass@1"] < 1


# Without it, this server decodes greedily, because the model's own generation config does not enable sampling.
EXTRA = {"generation_config": json.dumps({"do_sample": True, "top_k": 0, "eos_token_id": 0, "pad_token_id": 0})}


def test_served_sampler_samples_each_draw_once_and_matches_generate(server, reference):
    sampler = ServedSampler(**SETTINGS, url=server, extra=EXTRA)
    found = list(sampler.sample(MINI, TOKENIZER, PLAN[:FEW]))
    assert len(found) == FEW and {draw for draw, _ in found} == set(PLAN[:FEW])
    assert p_value(reference, [text for _, text in found]) > 1e-3


def test_a_resumed_run_on_a_server_keeps_its_complete_samples(server, small_stages, store):
    """Stored samples are not sampled again. The server would return other programs for another seed."""
    own = ["sampler=openai", f"sampler.url={server}", "stages=[zero_shot]", "sampler.max_new_tokens=64"]
    own.append(f"+sampler.extra.generation_config='{EXTRA['generation_config']}'")
    results = small_stages(*own).run()
    assert results["zero_shot"]["n_samples"] == 4 and 0 < results["zero_shot"]["pass@1"] < 1
    (file,) = store.glob("zero_shot/*/samples.jsonl")
    rows = file.read_text().splitlines()
    kept = rows[:10]
    file.write_text("\n".join(kept) + "\n" + rows[10][:20])  # as after a kill during a write
    for mark in file.parent.glob("*-*.json*"):
        mark.unlink()
    small_stages(*own).run()
    again = file.read_text().splitlines()
    assert again[:10] == kept and len(again) == len(rows) == 32
    assert len({(row["task_id"], row["sample"]) for row in map(json.loads, again)}) == 32


def test_a_server_that_decodes_greedily_is_an_error(server, tmp_path):
    shutil.copytree(MINI, tmp_path / "mini")  # the server keeps the settings of the first request for a model
    sampler = ServedSampler(**SETTINGS | {"max_new_tokens": 8}, url=server)
    with pytest.raises(InputError, match=r"sampler\.extra=.*same program for every seed"):
        list(sampler.sample(tmp_path / "mini", TOKENIZER, PLAN[:20]))


def test_an_unknown_model_or_unreachable_server_is_an_error(server, monkeypatch):
    monkeypatch.setattr(ServedSampler, "retries", 1)  # the client waits before each retry
    sampler = ServedSampler(**SETTINGS, url=server)
    with pytest.raises(InputError, match=r"sampler\.url='http.*models.*run the same command again"):
        list(sampler.sample(MINI.parent, TOKENIZER, PLAN[:2]))
    unreachable = ServedSampler(**SETTINGS, url="http://localhost:1/v1")
    with pytest.raises(InputError, match=r"sampler\.url='http://localhost:1/v1'.*APIConnectionError"):
        list(unreachable.sample("m", TOKENIZER, PLAN[:2]))


@dataclass
class Breaking(Sampler):
    """Raises an error after two programs of each batch."""

    def sample(self, model, tokenizer, draws):
        yield from ((draw, "    return 1") for draw in draws[:2])
        raise InputError("sampler.url", "u", "ends", "Start it.")


@dataclass
class BreakingWhole(Breaking):
    whole_plans = True


def programs_of_test_loop(sampler, folder, draws, first=5, **contents):
    """Return the callback's programs after a test loop over the draws, the `first` of which are a batch."""
    task = Task(11, "test", "t", "", "f", ("assert f(1) == 1",), "", PROMPT)
    callback = UnitTestCallback(tasks={11: task}, folder=folder, scoring="s")
    data = MBPPDataModule(TOKENIZER, Contents(test_draws=draws, whole_plans=sampler.whole_plans, **contents))
    data.draw_batches = lambda draws: [draws[:first], draws[first:]]
    make_trainer(CPU, callbacks=[callback], epochs=1).test(ILFModule(None, TOKENIZER, sampler), data, verbose=False)
    return callback.programs


@pytest.mark.parametrize("kind", [Breaking, BreakingWhole])
def test_samples_before_an_error_are_kept_unless_plans_are_whole(kind, tmp_path):
    with pytest.raises(InputError, match="ends"):  # raised at the end of the epoch, as in all processes
        programs_of_test_loop(kind(), tmp_path, PLAN[:9])
    file = tmp_path / "samples.jsonl"
    kept = file.read_text().splitlines() if file.exists() else []
    assert len(kept) == (0 if kind.whole_plans else 2)  # the second batch is not sampled


@dataclass
class Queue(Sampler):
    """Works on `batch_size` programs at once, each of which takes 20 to 100 seconds of a clock of its own."""

    now: float = 0.0

    def sample(self, model, tokenizer, draws):
        lengths = [20 + draw.seed % 81 for draw in draws]
        going: list[tuple[float, int]] = []
        for i, length in enumerate(lengths):
            if len(going) == self.batch_size:
                self.now, done = going.pop(0)
                yield draws[done], "    return 1"
            going = sorted([*going, (self.now + length, i)])
        for self.now, done in going:
            yield draws[done], "    return 1"


def test_time_left_counts_programs_in_progress(tmp_path, monkeypatch):
    sampler = Queue(batch_size=50)
    monkeypatch.setattr("ilf.training.unit_test_callback.time", SimpleNamespace(monotonic=lambda: sampler.now))
    monkeypatch.setattr("ilf.training.unit_test_callback.EVERY", 0.0)
    times = []
    monkeypatch.setattr(
        "ilf.training.unit_test_callback.time_left",
        lambda done, total, seconds: times.append((seconds, done and seconds * total / done)) or "",
    )
    programs_of_test_loop(sampler, tmp_path, PLAN, first=150)
    assert len(times) > 150
    assert all(sampler.now / 3 < whole < 3 * sampler.now for seconds, whole in times if seconds > 0)


@dataclass
class Fixed(Sampler):
    """Returns the same program for each draw."""

    whole_plans = True

    def sample(self, model, tokenizer, draws):
        return ((draw, "    return 'new'") for draw in draws)


def test_resampling_a_whole_plan_keeps_stored_programs(tmp_path):
    """Another process has stored part of the plan. The verdicts on its programs may be stored, too."""
    old = {"task_id": 11, "split": "test", "sample": 1, "seed": 0, "prompt": "p", "completion": "old", "program": "old"}
    (tmp_path / "samples.1.jsonl").write_text(json.dumps(old) + "\n")
    for _ in range(2):  # the second run is as after a kill
        found = programs_of_test_loop(Fixed(), tmp_path, PLAN[:3], kept=set(kept_samples(tmp_path)))
        drawn = [json.loads(line) for line in (tmp_path / "samples.jsonl").read_text().splitlines()]
        assert [row["sample"] for row in drawn] == [0, 2]
        assert [p.completion for p in found] == ["    return 'new'", "old", "    return 'new'"]


def test_max_new_tokens_beyond_the_models_positions_is_an_error(mini):
    model, tokenizer = mini
    length, places = len(tokenizer(PROMPT, add_special_tokens=False).input_ids), model.config.max_position_embeddings
    too_many = HFSampler(temperature=0.8, max_new_tokens=places - length + 1)
    with pytest.raises(InputError, match=rf"max_new_tokens={places - length + 1}.*Use at most {places - length},"):
        list(too_many.sample(model, tokenizer, PLAN[:1]))
    assert len(list(HFSampler(max_new_tokens=places - length).sample(model, tokenizer, PLAN[:1]))) == 1


def test_nan_logits_are_an_error():
    net, tokenizer = load_model(MINI, torch.float32), load_tokenizer(MINI)
    with torch.no_grad():
        net.get_output_embeddings().weight[5] = torch.nan
    with pytest.raises(InputError, match=r"model\.path=.*logits are NaN.*float32"):
        list(HFSampler().sample(net, tokenizer, PLAN[:2]))


# ---- distribution of each token -----------------------------------------------------------------------------------

LENGTH = 48  # tokens of each sample; no sample ends earlier


def z_score(model, prompt: list[int], samples: list[list[int]], temperature: float) -> float:
    """Return how far samples are from a model's distribution, in standard deviations.

    With p the distribution of a token given the tokens before it, and H its entropy, log p(token) + H has mean 0. The
    sum over all tokens is a martingale, and its variance is the sum of the variances of log p. The sum changes if
    likely or unlikely tokens are favored.
    """
    deviation, variance = 0.0, 0.0
    for tokens in samples:
        with torch.inference_mode():
            logits = model(input_ids=torch.tensor([prompt + tokens]), use_cache=False).logits[0, len(prompt) - 1 : -1]
        logs = torch.log_softmax(logits.double() / temperature, dim=-1)
        entropy = -(logs.exp() * logs).sum(-1)
        chosen = logs.gather(-1, torch.tensor(tokens)[:, None])[:, 0]
        deviation += float((chosen + entropy).sum())
        variance += float(((logs.exp() * logs**2).sum(-1) - entropy**2).sum())
    return deviation / variance**0.5


class TokenIds:
    """Decodes tokens to their ids, so that a test knows which tokens were sampled."""

    def __init__(self, tokenizer, prompt):
        pass

    def text(self, tokens):
        return " ".join(map(str, tokens))


@pytest.fixture
def endless(monkeypatch):
    """Make the local samplers sample the maximum number of tokens and return their ids."""
    for module in (hf, continuous):
        monkeypatch.setattr(module, "ended", lambda text, script: False)
        monkeypatch.setattr(module, "cut", lambda text, script: text)
    for module in (decoding, continuous):
        monkeypatch.setattr(module, "Continuation", TokenIds)
        monkeypatch.setattr(module, "end_ids", lambda model, tokenizer: {-1})


def drawn(sampler: Sampler, model, tokenizer, prompt: str) -> list[list[int]]:
    plan = [Draw(11, "test", i, derive_seed(1, i), prompt, prompt) for i in range(FEW)]
    return [list(map(int, text.split())) for _, text in sampler.sample(model, tokenizer, plan)]


TOKENS = {"temperature": 0.8, "max_new_tokens": LENGTH, "batch_size": 25}


@pytest.mark.parametrize("kind", [HFSampler, ContinuousSampler])
def test_each_token_is_sampled_from_the_models_distribution(kind, mini, endless):
    model, tokenizer = mini
    prompt = encode_prompts(tokenizer, [PROMPT])[0]
    samples = drawn(kind(**TOKENS), model, tokenizer, PROMPT)
    assert {len(tokens) for tokens in samples} == {LENGTH}
    assert abs(z_score(model, prompt, samples, 0.8)) < 4
    # The number of samples is large enough to detect another temperature.
    hotter = drawn(kind(**TOKENS | {"temperature": 1.0}), model, tokenizer, PROMPT)
    assert abs(z_score(model, prompt, hotter, 0.8)) > 4


def test_each_token_of_a_server_is_sampled_from_the_distribution(mini, server, tmp_path):
    """The server streams single tokens.

    It keeps the settings of the first request for a folder, so each temperature has its own folder.
    """
    model, tokenizer = mini
    prompt = encode_prompts(tokenizer, [PROMPT])[0]
    client = openai.OpenAI(base_url=server, api_key="none")

    def ask(folder: Path, temperature: float, seed: int) -> list[int]:
        own = {"temperature": temperature, "max_tokens": LENGTH, "extra_body": EXTRA | {"seed": seed}}
        tokens: list[int] = []
        with client.completions.create(model=str(folder), prompt=PROMPT, top_p=1.0, stream=True, **own) as stream:
            for part in stream:
                if text := part.choices[0].text:
                    (token,) = tokenizer(text, add_special_tokens=False).input_ids
                    tokens.append(token)
        return tokens + [tokenizer.eos_token_id] * (len(tokens) < LENGTH)

    with ThreadPoolExecutor(8) as threads:
        for temperature, fits in ((0.8, True), (1.1, False)):
            folder = shutil.copytree(MINI, tmp_path / str(temperature))
            samples = list(threads.map(partial(ask, folder, temperature), range(FEW)))
            assert (abs(z_score(model, prompt, samples, 0.8)) < 4) == fits


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_each_token_of_a_real_model_is_sampled_from_its_distribution(dtype, chat_model, endless):
    tokenizer = load_tokenizer(chat_model)
    prompt = encode_prompts(tokenizer, [PROMPT])[0]
    samples = drawn(HFSampler(**TOKENS), load_model(chat_model, dtype), tokenizer, PROMPT)
    assert abs(z_score(load_model(chat_model, torch.float32), prompt, samples, 0.8)) < 4


def test_one_long_prompt_does_not_pad_the_others(mini, monkeypatch):
    model, tokenizer = mini
    short = [task.prompt for task in tasks_from(mini_tasks.rows()[20:36], None, "paper")[0]]
    long = "".join(short[:12]) + PROMPT
    draws = [Draw(i, "test", 0, i, text, text) for i, text in enumerate([*short, long])]
    read = []

    def counting(model, prompts, *rest):
        read.append((len(prompts) * max(map(len, prompts)), sum(map(len, prompts))))
        return prefill(model, prompts, *rest)

    monkeypatch.setattr(decoding, "prefill", counting)
    sampler = HFSampler(1, 0.0, 32, len(draws))
    together = dict(sampler.sample(model, tokenizer, draws))
    padded, real = (sum(column) for column in zip(*read, strict=True))
    assert padded <= 1.5 * real and len(read) > 1
    assert together == {draw: text for own in draws for draw, text in sampler.sample(model, tokenizer, [own])}

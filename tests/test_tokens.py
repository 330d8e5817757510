"""Tokenizers of every family encode and decode text without changes, in all places where text becomes tokens."""

from __future__ import annotations

import copy
import gc
import json
import weakref
from pathlib import Path

import pytest
import torch
from conftest import MINI
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizer_families import FAMILIES, SPECIAL, family
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from ilf.models import chat
from ilf.models.folder import check_model
from ilf.models.load import load_model, load_tokenizer, save
from ilf.models.policy_change import perplexity
from ilf.models.targets import encode
from ilf.models.tokens import (
    Continuation,
    check_code,
    encode_chat,
    encode_continuation,
    encode_prompts,
    end_ids,
    end_of_text,
    ends_line,
    front_tokens,
    loses_space,
    truncate,
)
from ilf.sampling import ContinuousSampler, HFSampler, ServedSampler
from ilf.types import Draw, InputError

pieces = st.sampled_from(
    [" ", "\n", "\t", "    ", "x", "return", "('", "é", "\U0001f600", "\\", *SPECIAL, "<unk>", "<s>"]
)
texts = st.lists(st.one_of(pieces, st.text(max_size=4)), max_size=12).map("".join)
texts = texts.filter(lambda text: "▁" not in text)  # SentencePiece's character for a space
by_family = pytest.mark.parametrize("name", FAMILIES)


@by_family
@settings(max_examples=60, deadline=None)
@given(prompt=texts, text=texts)
def test_any_text_round_trips_after_any_prompt_without_special_tokens(name, prompt, text):
    tokenizer = family(name)
    (before,) = encode_prompts(tokenizer, [prompt + "\n"])
    after = encode_continuation(tokenizer, text)
    assert Continuation(tokenizer, before).text(after) == text
    front = front_tokens(tokenizer)
    assert tuple(before[: len(front)]) == front
    assert not {*before[len(front) :], *after} & set(tokenizer.all_special_ids)


@by_family
def test_training_example_matches_the_sampling_prompt_and_ends_with_eos(name):
    tokenizer = family(name)
    prompt, target = "def f(x):\n", "    return '<|end|>'.join(x)\n    # <|bos|>"
    example = encode(tokenizer, 1, prompt, target, 1000)
    assert list(example.prompt_ids) == encode_prompts(tokenizer, [prompt])[0]
    assert [*example.prompt_ids, *example.target_ids].count(tokenizer.eos_token_id) == 1
    assert example.target_ids[-1] == tokenizer.eos_token_id
    assert Continuation(tokenizer, example.prompt_ids).text(example.target_ids) == target


@by_family
def test_truncated_text_is_a_prefix_of_the_text(name):
    text = "def f(x):\n    '''<|end|>'''\n    return x"
    for count in range(1, 60):
        assert text.startswith(truncate(family(name), text, count).removeprefix(" "))
    assert truncate(family(name), text, 1000) == text


@by_family
def test_bos_setting_overrides_the_tokenizers_front_tokens(name, tmp_path):
    own = family(name)
    own.save_pretrained(tmp_path / "own")
    bos = (own.bos_token_id,)
    for setting, front in ((None, front_tokens(own)), (True, bos), (False, ())):
        tokenizer = load_tokenizer(tmp_path / "own", setting)
        assert front_tokens(tokenizer) == front
        tokenizer.save_pretrained(tmp_path / str(setting))  # like a policy, which other programs load
        if (name, setting) != ("Code Llama", False):  # transformers' class always adds BOS
            assert front_tokens(load_tokenizer(tmp_path / str(setting))) == front
        assert encode(tokenizer, 1, "x\n", "y", 99).prompt_ids[: len(front)] == front


def test_lone_surrogates_are_encoded_as_replacement_characters():
    for name in FAMILIES:
        (ids,) = encode_prompts(family(name), ["x \ud83d y\n"])
        assert Continuation(family(name), ids).text(encode_continuation(family(name), "\ude00")) == "\ufffd"


def test_bos_setting_without_a_bos_token_is_an_error(tmp_path):
    tokenizer = Tokenizer(models.BPE())
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|end|>").save_pretrained(tmp_path)
    with pytest.raises(InputError, match=r"model\.bos=True.*no BOS token"):
        load_tokenizer(tmp_path, True)


def lossy_tokenizer(kind: str) -> PreTrainedTokenizerFast:
    """Return a tokenizer that does not preserve the spaces of code."""
    letters = ["<unk>", "<|end|>", *pre_tokenizers.ByteLevel.alphabet()]
    tokenizer = Tokenizer(models.BPE({letter: i for i, letter in enumerate(letters)}, [], unk_token="<unk>"))
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.ByteLevel(False), decoders.ByteLevel()
    if kind == "single spaces":
        tokenizer.normalizer = normalizers.Replace("  ", " ")
    elif kind == "words":
        tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.Whitespace(), decoders.Fuse()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|end|>", unk_token="<unk>")


@pytest.mark.parametrize("kind", ["single spaces", "words"])
def test_tokenizer_that_loses_spaces_is_an_error(kind, tmp_path):
    tokenizer = lossy_tokenizer(kind)
    with pytest.raises(ValueError, match="spells"):
        check_code(tokenizer)
    LlamaForCausalLM(tiny(len(tokenizer))).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    with pytest.raises(InputError, match="its tokenizer changes code"):
        check_model("model.path", tmp_path)


# Prompts and their continuations, which tiny models memorize. They are trained on tokens from transformers itself.
MEMORIZED = {
    '"""\nReturn the sum.\n"""\n\ndef f(x):\n': "    total = 0\n    for y in x:\n        total += y\n    return total",
    '"""\nReturn the first.\n"""\n\ndef first(x):\n': "    if not x:\n        return None\n    return x[0]",
    '"""\nJoin.\n"""\n\ndef join(x):\n': "    y = '<|end|>'.join(x)\n    return y",
}
TRAINED_FAMILIES = ("Llama 2, as published", "Gemma", "byte-level with BOS (Llama 3)")


def tiny(vocabulary: int, eos: int = 1) -> LlamaConfig:
    size = {"hidden_size": 48, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4}
    return LlamaConfig(vocab_size=vocabulary, max_position_embeddings=256, eos_token_id=eos, **size)


@pytest.fixture(scope="module", params=TRAINED_FAMILIES)
def by_heart(request, tmp_path_factory) -> Path:
    tokenizer, folder = family(request.param), tmp_path_factory.mktemp("by_heart")
    torch.manual_seed(0)
    model = LlamaForCausalLM(tiny(len(tokenizer), tokenizer.eos_token_id))
    rows = []
    for prompt, target in MEMORIZED.items():
        front = tokenizer(prompt).input_ids
        whole = tokenizer(prompt + target, split_special_tokens=True).input_ids
        if whole[: len(front)] != front:  # a token spans prompt and target, so encode them separately
            whole = front + tokenizer(target, add_special_tokens=False, split_special_tokens=True).input_ids
        rows.append([*whole, tokenizer.eos_token_id])
    width = max(map(len, rows))
    ids = torch.tensor([[*row, *[tokenizer.pad_token_id] * (width - len(row))] for row in rows])
    mask = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in rows])
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=0.0)
    for _ in range(200):
        loss = model(input_ids=ids, attention_mask=mask, labels=ids.masked_fill(mask == 0, -100)).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if loss < 0.02:
            break
    assert loss < 0.3  # the first tokens of a prompt can't be predicted
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def draws(n: int = 1) -> list[Draw]:
    return [Draw(i, "test", s, 10 * i + s, p, p) for i, p in enumerate(MEMORIZED) for s in range(n)]


LOW_TEMPERATURE = {"temperature": 0.05, "max_new_tokens": 120, "batch_size": 2}


@pytest.mark.parametrize("kind", [HFSampler, ContinuousSampler])
def test_memorized_programs_are_sampled_exactly(by_heart, kind):
    model, tokenizer = load_model(by_heart, torch.float32), load_tokenizer(by_heart)
    found = {draw.prompt: text for draw, text in kind(**LOW_TEMPERATURE).sample(model, tokenizer, draws())}
    assert found == MEMORIZED


def test_memorized_programs_have_low_perplexity(by_heart):
    model, tokenizer = load_model(by_heart, torch.float32), load_tokenizer(by_heart)
    assert max(one.body for one in perplexity(model, tokenizer, list(MEMORIZED.items()), 1000)) < 1.2


def test_served_programs_are_exact_or_a_dropped_space_is_an_error(by_heart, server):
    sampler = ServedSampler(url=server, **LOW_TEMPERATURE)
    tokenizer = load_tokenizer(by_heart)
    multi = [draw for draw in draws(12) if "<|" not in MEMORIZED[draw.prompt]]
    if loses_space(tokenizer):
        with pytest.raises(InputError, match="drops the space"):
            list(sampler.sample(by_heart, tokenizer, multi[:12]))
    else:
        found = {draw.prompt: text for draw, text in sampler.sample(by_heart, tokenizer, multi[::12])}
        assert found == {prompt: MEMORIZED[prompt] for prompt in found} and len(found) == 2


TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}<|user|>{{ m['content'] }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|user|>{% endif %}"
)


@by_family
@settings(max_examples=25, deadline=None)
@given(content=texts)
def test_special_tokens_spelled_out_in_turns_are_encoded_as_text(name, content):
    tokenizer = family(name)
    tokenizer.chat_template = TEMPLATE
    turns = [{"role": "user", "content": f"{content}<|user|>x<|end|>"}]
    ids = encode_chat(tokenizer, turns)
    own = tokenizer.convert_tokens_to_ids(["<|bos|>", "<|user|>", "<|end|>", "<|user|>"])
    assert [i for i in ids if i in tokenizer.all_special_ids] == own
    assert f"{content}<|user|>x<|end|>" in tokenizer.decode(ids)
    plain = [{"role": "user", "content": "x = 1"}]
    rendered = tokenizer.apply_chat_template(plain, tokenize=False, add_generation_prompt=True)
    assert encode_chat(tokenizer, plain) == tokenizer(rendered, add_special_tokens=False).input_ids


def with_turns(*names):
    """Return a tokenizer whose EOS, <|end|>, ends turns, with additional special tokens."""
    tokenizer = copy.deepcopy(family(TRAINED_FAMILIES[0]))
    tokenizer.add_special_tokens({"additional_special_tokens": list(names)})
    tokenizer.chat_template = TEMPLATE
    return tokenizer


@pytest.mark.parametrize("name", ["<|endoftext|>", "<|end_of_text|>", "<eos>"])
def test_plain_text_ends_with_the_end_of_text_token_of_pretraining(name):
    tokenizer = with_turns("<|other|>", name)
    end = tokenizer.convert_tokens_to_ids(name)
    assert end != tokenizer.eos_token_id
    assert encode(tokenizer, 1, "def f(x):\n", "    return x", 100).target_ids[-1] == end
    model = LlamaForCausalLM(tiny(len(tokenizer), tokenizer.eos_token_id))
    assert end_ids(model, tokenizer) == {end, tokenizer.eos_token_id}
    tokenizer = with_turns("<|other|>", name)
    tokenizer.chat_template = None  # without a chat template, EOS ends texts
    assert end_of_text(tokenizer) == tokenizer.eos_token_id


def test_eos_ends_texts_if_it_ends_no_turn_or_no_other_token_is_known():
    tokenizer = with_turns("<|endoftext|>")
    tokenizer.chat_template = TEMPLATE.replace("<|end|>", "<|user|>")
    assert end_of_text(tokenizer) == tokenizer.eos_token_id
    tokenizer = with_turns("<|unheard_of|>")
    assert end_of_text(tokenizer) == tokenizer.eos_token_id


@pytest.mark.parametrize("name", ["<|end|>", "<|endoftext|>"])
def test_sampling_stops_at_end_of_text_and_at_end_of_turn(name):
    tokenizer = with_turns("<|endoftext|>")
    model = LlamaForCausalLM(tiny(len(tokenizer), tokenizer.eos_token_id)).eval()
    end = tokenizer.convert_tokens_to_ids(name)
    bias = torch.full((len(tokenizer),), -30.0)
    bias[end], bias[tokenizer("x", add_special_tokens=False).input_ids[-1]] = 0.0, 2.0
    model.lm_head.bias = torch.nn.Parameter(bias)
    torch.nn.init.zeros_(model.lm_head.weight)
    draws = [Draw(1, "test", i, i, "y = ", "y = ") for i in range(30)]
    texts = [text for _, text in HFSampler(1, 1.0, 240, 30).sample(model, tokenizer, draws)]
    assert all(set(text) <= {"x", " "} for text in texts) and max(text.count("x") for text in texts) < 200


def chat_tokenizer():
    """Return a tokenizer that puts prompts into turns, which begin with <|user|> and end with <|end|>."""
    tokenizer = with_turns("<|endoftext|>")
    tokenizer.uses_chat = True
    return tokenizer


def test_chat_prompts_put_the_head_of_the_program_into_the_answer():
    tokenizer, task = chat_tokenizer(), "def f(x):\n"
    bos, user, end = tokenizer.convert_tokens_to_ids(["<|bos|>", "<|user|>", "<|end|>"])
    refine = f"OLD CODE:\n{task}    return '<|end|>'\n\nFEEDBACK:\nREFINEMENT: no\n\nREFINEMENT:\n"
    for prompt, asked, head in ((task, task, task), (refine + task, refine, task), (refine, refine, "")):
        (ids,) = encode_prompts(tokenizer, [prompt])
        begin = len(ids) - len(encode_continuation(tokenizer, head)) if head else len(ids)
        # Special tokens that the prompt spells out are encoded as text.
        assert ids[:2] == [bos, user] and ids[:begin].count(user) == 2 and ids.count(end) == 1
        assert asked in tokenizer.decode(ids[:begin]) and tokenizer.decode(ids[begin:]) == head
    example = encode(tokenizer, 1, refine, task + "    return x", 500)
    sampled = encode_prompts(tokenizer, [refine + task])[0]
    both = [*example.prompt_ids, *example.target_ids]
    assert example.target_ids[-1] == end and tokenizer.decode(both[:-1]).startswith(tokenizer.decode(sampled))


def test_eos_ends_texts_if_the_template_rejects_an_answer():
    tokenizer = with_turns("<|endoftext|>")
    tokenizer.chat_template = "{{ raise_exception('no answers here') }}"
    assert end_of_text(tokenizer) == tokenizer.eos_token_id


def test_chat_prompts_without_a_chat_template_are_an_error(tmp_path):
    tokenizer = with_turns()
    tokenizer.chat_template = None
    tokenizer.save_pretrained(tmp_path)
    with pytest.raises(InputError, match=r"data\.prompt='chat'.*no chat template.*data\.prompt=paper"):
        load_tokenizer(tmp_path, chat=True)
    tokenizer.chat_template = TEMPLATE
    tokenizer.save_pretrained(tmp_path)
    assert load_tokenizer(tmp_path, chat=True).uses_chat and not load_tokenizer(tmp_path).uses_chat


def test_all_end_tokens_are_saved_but_sampling_settings_are_dropped(tmp_path):
    tokenizer = family(TRAINED_FAMILIES[0])
    turn, other = tokenizer.convert_tokens_to_ids(["<|user|>", "x"])
    assert tokenizer.eos_token_id not in (turn, other)
    model = LlamaForCausalLM(tiny(len(tokenizer), other))
    model.generation_config = GenerationConfig(eos_token_id=[other, turn], do_sample=True, top_k=3, temperature=0.2)
    model.save_pretrained(tmp_path / "base")
    tokenizer.save_pretrained(tmp_path / "base")
    ends = {other, turn, tokenizer.eos_token_id}
    for folder in (tmp_path / "base", tmp_path / "policy"):
        loaded = load_model(folder, torch.float32)
        assert end_ids(loaded, tokenizer) == ends
        assert loaded.generation_config.top_k is None and loaded.generation_config.temperature is None
        save(loaded, tokenizer, tmp_path / "policy")
    kept = json.loads((tmp_path / "policy" / "generation_config.json").read_text())
    assert set(kept["eos_token_id"]) == ends and "top_k" not in kept


def test_local_llm_answer_stops_at_any_end_token_of_its_folder(tmp_path):
    tokenizer = family(TRAINED_FAMILIES[0])
    model = LlamaForCausalLM(tiny(len(tokenizer)))
    model.generation_config = GenerationConfig(eos_token_id=list(range(len(tokenizer))))  # every token ends an answer
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    asked = [[{"messages": [{"role": "user", "content": "x"}], "seed": 0}]]
    ((_, answer),) = chat.answers(tmp_path, asked, 1, 1.0, 8, torch.device("cpu"))
    assert answer["finish_reason"] == "stop" and answer["usage"]["completion_tokens"] == 0


def test_no_cache_keeps_a_tokenizer_alive():
    tokenizer = load_tokenizer(MINI)
    assert any(ends_line(tokenizer, token) for token in range(len(tokenizer))) and end_of_text(tokenizer) >= 0
    check_code(tokenizer)
    alive = weakref.ref(tokenizer)
    del tokenizer
    gc.collect()
    assert alive() is None

"""Converts text to tokens and back, in the same way for every tokenizer.

Text is encoded literally: a special token that is spelled out in a program or in feedback is encoded as ordinary
characters. No token is added except those that the tokenizer itself puts in front of a text. A continuation of a
prompt is encoded, and decoded, as a continuation. This matters because many tokenizers (SentencePiece's: Llama 2,
Code Llama, Mistral) add a space to a text when they encode it and remove one when they decode it, which would change
the indentation of a program's first line.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeVar
from weakref import WeakKeyDictionary

from jinja2 import TemplateError

from ilf.files import whole
from ilf.tasks.feedback_prompts import REFINEMENT
from ilf.types import InputError

# Prefixes that make a tokenizer encode a text as a continuation; their tokens are cut off again. An anchor must not
# merge with the text after it. Candidates: no anchor, a newline, and characters that hardly any vocabulary has.
_ANCHORS = ("", "\n", "\0", "\ue000")
_PROBES = ("    return x  # y\n", "\n\tif  x:\n        y", "x = ''", " x")
_CONTEXTS = (4, 16, 64, 256)  # tokens
# The names of end-of-text tokens in the pretraining of the model families.
_ENDS = ("<|endoftext|>", "<|end_of_text|>", "<|end▁of▁sentence|>", "<｜end▁of▁sentence｜>", "</s>", "<eos>")


T = TypeVar("T")
_known: WeakKeyDictionary[Any, dict[Any, Any]] = WeakKeyDictionary()  # by tokenizer


def _once(found: Callable[..., T]) -> Callable[..., T]:
    """Cache the results of a function of a tokenizer for as long as that tokenizer exists."""

    @functools.wraps(found)
    def known(tokenizer: Any, *more: Any) -> T:
        kept, key = _known.setdefault(tokenizer, {}), (found.__name__, *more)
        if key not in kept:
            kept[key] = found(tokenizer, *more)
        result: T = kept[key]
        return result

    return known


def by_length(items: Iterable[T], length: Callable[[T], int], padding: float, size: int | None = None) -> list[list[T]]:
    """Return items in groups of similar length, the longest first.

    Args:
        items: What is padded to the longest of its group.
        length: The number of tokens of an item.
        padding: The largest share of padding among a group's tokens.
        size: The largest number of items in a group; None for any number.
    """
    groups: list[list[T]] = []
    for item in sorted(items, key=lambda item: -length(item)):
        last = groups[-1] if groups else []
        real = sum(map(length, last)) + length(item)
        if last and len(last) != size and real >= (1 - padding) * (len(last) + 1) * length(last[0]):
            last.append(item)
        else:
            groups.append([item])
    return groups


def encode_prompts(tokenizer: Any, prompts: Sequence[str]) -> list[list[int]]:
    """Return the tokens of each prompt, including those that the tokenizer puts in front of a text, such as BOS.

    If the tokenizer uses chat (`load_tokenizer`), the user's turn holds the prompt, and the answer begins with the
    head of the program to write: the text after the heading of a refine prompt, or the whole prompt.

    Args:
        tokenizer: A transformers tokenizer.
        prompts: The texts to continue.
    """
    if uses_chat(tokenizer):
        return [_encode_turns(tokenizer, prompt) for prompt in prompts]
    front = list(front_tokens(tokenizer))
    return [front + ids for ids in _encode(tokenizer, prompts)]


def uses_chat(tokenizer: Any) -> bool:
    """Return whether prompts are put into the turns of the tokenizer's chat template."""
    return bool(getattr(tokenizer, "uses_chat", False))


def _encode_turns(tokenizer: Any, prompt: str) -> list[int]:
    before, heading, head = prompt.rpartition(REFINEMENT)
    query = before + heading if heading else prompt
    begun = encode_continuation(tokenizer, head) if head else []
    return encode_chat(tokenizer, [{"role": "user", "content": query}]) + begun


def encode_continuation(tokenizer: Any, text: str) -> list[int]:
    """Return the tokens of a text that follows a prompt, without EOS.

    The prompt's own tokens stay as they are when the prompt stands alone, because that is the model's input: no token
    spans both the prompt and the text. For tokenizers that can't encode code in this way, see `check_code`.
    """
    first = _anchor(tokenizer) or ""
    for anchor in (first, *(other for other in _ANCHORS if other not in ("", first))):
        ids = _after(tokenizer, anchor, text)
        if ids is not None:
            return ids
    return _encode(tokenizer, [text])[0]


def encode_chat(tokenizer: Any, turns: Sequence[dict[str, str]]) -> list[int]:
    """Return the tokens of a conversation that an answer will follow.

    The tokenizer's chat template converts the conversation to text, including any tokens in front. Without a
    template, the turns follow one another.

    Args:
        tokenizer: A transformers tokenizer.
        turns: The role and content of each turn.
    """
    if tokenizer.chat_template is None:
        return encode_prompts(tokenizer, ["".join(turn["content"] + "\n\n" for turn in turns)])[0]
    contents = "".join(turn["content"] for turn in turns)
    special = [token.content for token in tokenizer.added_tokens_decoder.values() if token.special]
    spelt = [re.escape(token) for token in special if len(token) > 1 and token in contents]
    if spelt:  # insert a rare character, so that only the template's own special tokens are read as such
        rare = next(char for char in map(chr, range(0xE000, 0xF8FF)) if char not in contents)
        apart = re.compile(f"(?<=(?={'|'.join(spelt)}).)")
        turns = [{**turn, "content": apart.sub(rare, turn["content"])} for turn in turns]
    text = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
    ids: list[int] = tokenizer(whole(text), add_special_tokens=False).input_ids
    return _without(ids, encode_continuation(tokenizer, rare)) if spelt else ids


def _without(ids: list[int], part: list[int]) -> list[int]:
    """Return the ids without any occurrence of a subsequence."""
    found: list[int] = []
    for token in ids:
        found.append(token)
        if found[-len(part) :] == part:
            del found[-len(part) :]
    return found


def front_tokens(tokenizer: Any) -> tuple[int, ...]:
    """Return the tokens that a tokenizer puts in front of a text: none, BOS, or others that its model learned."""
    (plain,) = _encode(tokenizer, ["x"])
    ids = tokenizer("x").input_ids
    starts = (i for i in range(len(ids)) if ids[i : i + len(plain)] == plain)
    return tuple(ids[: next(starts, 0)])


def truncate(tokenizer: Any, text: str, count: int) -> str:
    """Return the text of the first `count` tokens of a text, or the text itself if it has no more."""
    (ids,) = _encode(tokenizer, [text])
    return text if len(ids) <= count else _decode(tokenizer, ids[:count])


def loses_space(tokenizer: Any) -> bool:
    """Return whether a continuation loses a leading space if it is decoded without its prompt."""
    return not _decode(tokenizer, encode_continuation(tokenizer, "  x")).startswith("  ")


def spells_special(tokenizer: Any, text: str) -> bool:
    """Return whether the tokenizer would by default read a special token in a text that only spells it out."""
    read: list[int] = tokenizer(whole(text), add_special_tokens=False, split_special_tokens=False).input_ids
    return read != _encode(tokenizer, [text])[0]


def end_ids(model: Any, tokenizer: Any) -> set[int]:
    """Return a model's end-of-text ids: its own, its tokenizer's EOS, and `end_of_text`."""
    return set(token_ids(model.generation_config.eos_token_id, tokenizer.eos_token_id, end_of_text(tokenizer)))


@_once
def end_of_text(tokenizer: Any) -> int:
    """Return the token that ends a plain text for a model; training targets end with it.

    It is EOS, unless EOS ends a turn of the chat template. An instruct model never saw that token end a plain text,
    so this is instead the end-of-text token of pretraining, if a special token has one of its usual names. If prompts
    are put into turns, it is the token that ends an answer.
    """
    eos: int = tokenizer.eos_token_id
    turn = _end_of_turn(tokenizer)
    if uses_chat(tokenizer):
        return eos if turn is None else turn
    if eos != turn:
        return eos
    special = {token.content: i for i, token in tokenizer.added_tokens_decoder.items() if token.special}
    return next((special[name] for name in _ENDS if name in special), eos)


def _end_of_turn(tokenizer: Any) -> int | None:
    """Return the token that ends an answer in the chat template; None without a template or such a token."""
    if tokenizer.chat_template is None:
        return None
    answer = "\ue000"  # in no template
    turns = [{"role": "user", "content": "x"}, {"role": "assistant", "content": answer}]
    try:
        text: str = tokenizer.apply_chat_template(turns, tokenize=False)
    except TemplateError:  # the template has no such turns
        return None
    ids: list[int] = tokenizer(text.rpartition(answer)[2], add_special_tokens=False).input_ids
    return next((i for i in ids if i in tokenizer.added_tokens_decoder), None)


def token_ids(*configured: int | Sequence[int] | None) -> list[int]:
    """Return the token ids of several settings of models and tokenizers, each with no id, one or several."""
    several = [[] if one is None else [one] if isinstance(one, int) else one for one in configured]
    return list(dict.fromkeys(i for ids in several for i in ids))


class Continuation:
    """Decodes the text that follows a prompt.

    Args:
        tokenizer: A transformers tokenizer.
        prompt: Tokens of the prompt.
    """

    def __init__(self, tokenizer: Any, prompt: Sequence[int]) -> None:
        self.tokenizer, text = tokenizer, _decode(tokenizer, prompt)
        # Decoding runs after each token; the prompt's last tokens are enough context.
        for count in (*_CONTEXTS, len(prompt)):
            self.context = list(prompt[-count:])
            self.before = _decode(tokenizer, self.context)
            if self.before.strip() and "\ufffd" not in self.before and text.endswith(self.before):
                break

    def text(self, tokens: Sequence[int]) -> str:
        """Return the text of `tokens` after the prompt, without special tokens."""
        both = _decode(self.tokenizer, [*self.context, *tokens])
        if both.startswith(self.before):
            return both[len(self.before) :]
        return _decode(self.tokenizer, tokens)  # invalid bytes have changed how the prompt's end is decoded


@_once
def ends_line(tokenizer: Any, token: int) -> bool:
    """Return whether a token contains a newline."""
    return "\n" in _decode(tokenizer, [token])


@_once
def _anchor(tokenizer: Any) -> str | None:
    """Return the prefix that makes the tokenizer encode a text as a continuation; None if there is none."""
    follows = Continuation(tokenizer, _encode(tokenizer, ["x:\n"])[0])
    for anchor in _ANCHORS:
        found = [_after(tokenizer, anchor, probe) for probe in _PROBES]
        if all(ids is not None and follows.text(ids) == probe for ids, probe in zip(found, _PROBES, strict=True)):
            return anchor
    return None


def check_code(tokenizer: Any) -> None:
    """Check that the tokenizer can encode code after a prompt with every space in place.

    Raises:
        ValueError: It can't. The message shows how it changes a line of code.
    """
    if _anchor(tokenizer) is None:
        probe = _PROBES[1]
        spelt = Continuation(tokenizer, _encode(tokenizer, ["x:\n"])[0]).text(encode_continuation(tokenizer, probe))
        raise ValueError(f"it spells {probe!r} as {spelt!r}")


def _after(tokenizer: Any, anchor: str, text: str) -> list[int] | None:
    """Return the tokens of a text after an anchor; None if the two share a token."""
    if not anchor:
        return _encode(tokenizer, [text])[0]
    before, both = _encode(tokenizer, [anchor, anchor + text])
    return both[len(before) :] if both[: len(before)] == before else None


def _encode(tokenizer: Any, texts: Sequence[str]) -> list[list[int]]:
    """Return the tokens of each text, none of which is a special token."""
    if not texts:
        return []
    texts = [whole(text) for text in texts]
    ids: list[list[int]] = tokenizer(texts, add_special_tokens=False, split_special_tokens=True).input_ids
    return ids


def _decode(tokenizer: Any, ids: Sequence[int]) -> str:
    text: str = tokenizer.decode(list(ids), skip_special_tokens=True, clean_up_tokenization_spaces=False)
    return text


def positions(config: Any) -> int | None:
    """Return the number of positions of a transformers model; None if its configuration sets no limit."""
    places: int | None = getattr(config.get_text_config(), "max_position_embeddings", None)
    return places


def check_room(
    config: Any,
    prompt: int,
    new: int,
    name: str = "a prompt",
    key: str = "sampler.max_new_tokens",
    shorter: str = "the refiner's: refiner.old_code_tokens, refiner.shots",
) -> None:
    """Check that a model has enough positions for a prompt and the tokens sampled after it.

    Args:
        config: The model's transformers configuration.
        prompt: Tokens of the longest prompt.
        new: The largest number of tokens to sample.
        name: What the prompt is.
        key: The setting whose value is `new`.
        shorter: The settings that shorten prompts.

    Raises:
        InputError: The model has too few positions. The message says how many tokens would fit.
    """
    places = positions(config)
    if places is not None and prompt + new > places:
        allowed = f"together with the {prompt} tokens of {name} exceeds the model's {places} positions"
        fits = f"Use at most {places - prompt}, or" if prompt < places else "Choose"
        raise InputError(key, new, allowed, f"{fits} shorter prompts ({shorter}), or another model.")

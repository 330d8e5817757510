"""Sampling by transformers' continuous batching, with a paged KV cache whose pages prompts of one prefix share."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, ContinuousBatchingConfig, GenerationConfig
from transformers.generation.continuous_batching.cache import group_layers_by_attn_type

from ilf.models.tokens import Continuation, check_room, encode_prompts, end_ids
from ilf.protocols import Sampler
from ilf.tasks.prompts import cut, ended
from ilf.types import Draw, InputError

_TOKENS = 512  # tokens per step without a GPU; with one, transformers chooses by its memory
_PAGE = 256  # tokens per page of the cache


def check_continuous(config: Any) -> None:
    """Check by a model's class and configuration that transformers can batch it continuously.

    Raises:
        InputError: It can't. The message names the architecture.
    """
    kind: Any = MODEL_FOR_CAUSAL_LM_MAPPING[type(config)]
    reason = None
    try:
        group_layers_by_attn_type(config.get_text_config())
    except ValueError as error:
        reason = f"has other layers than attention ({error})"
    if kind._is_stateful or "cache" not in inspect.signature(kind.forward).parameters:
        reason = "has no KV cache"
    elif not kind._supports_attention_backend:
        reason = reason or "has its own attention implementation, without a paged version"
    if reason is not None:
        raise _refused(kind.__name__, reason)


def _refused(architecture: str, reason: str) -> InputError:
    allowed = f"needs a model that transformers can batch continuously, and {architecture} {reason}"
    return InputError("sampler", "continuous", allowed, "Choose sampler=hf, which samples every causal model.")


@dataclass
class ContinuousSampler(Sampler):
    """A sampler that uses transformers' continuous batching.

    It samples from the same distribution as `HFSampler`, but not the same programs: one stream of random numbers serves
    all draws of a plan, so a draw's seed alone does not determine its program. When memory runs out, transformers
    itself defers requests.
    """

    def check_model(self, config: Any) -> None:
        """Raise InputError if transformers can't batch a model continuously."""
        check_continuous(config)

    def sample(self, model: Any, tokenizer: Any, draws: Sequence[Draw]) -> Iterator[tuple[Draw, str]]:
        """Yield each draw with its completion, cut where the program ends, in the order in which they finish.

        Raises:
            InputError: The model can't be batched continuously.
            RuntimeError: transformers reports an error for a request, or its engine stops.
        """
        limit, prompts = self.max_new_tokens, list(dict.fromkeys(draw.prompt for draw in draws))
        ids = dict(zip(prompts, encode_prompts(tokenizer, prompts), strict=True))
        check_room(model.config, max(map(len, ids.values()), default=0), limit)
        continuations = {prompt: Continuation(tokenizer, tokens) for prompt, tokens in ids.items()}
        generation = GenerationConfig(
            do_sample=self.temperature > 0,
            temperature=self.temperature or 1.0,
            top_k=self.top_k,
            top_p=1.0,
            max_new_tokens=limit,
            eos_token_id=sorted(end_ids(model, tokenizer)),
            pad_token_id=tokenizer.pad_token_id,
        )
        batching = ContinuousBatchingConfig(
            max_requests_per_batch=self.batch_size, seed=draws[0].seed % 2**31, page_size=_PAGE
        )
        on_gpu = model.device.type == "cuda"
        if not on_gpu:
            pages = -(-(max(map(len, ids.values())) + limit) // _PAGE)
            batching.num_blocks, batching.max_batch_tokens = self.batch_size * pages + 1, _TOKENS
        with model.continuous_batching_context_manager(
            generation_config=generation,
            continuous_batching_config=batching,
            warmup=on_gpu,
            timeout=10,
        ) as manager:
            waiting = {manager.add_request(ids[draw.prompt], streaming=True): draw for draw in draws}
            while waiting:
                result = manager.get_result(timeout=1)
                if result is None:
                    if not manager.is_running():
                        raise RuntimeError("transformers' continuous batching stopped before all requests had finished")
                    continue
                if result.request_id not in waiting:  # a token of a request that was canceled in the meantime
                    continue
                if result.error is not None:
                    if len(waiting) == len(draws):  # nothing has worked yet, so the paged cache does not fit the model
                        raise _refused(type(model).__name__, f"does not work with its paged cache ({result.error})")
                    raise RuntimeError(f"transformers' continuous batching: {result.error}")
                tokens = [token for token in result.generated_tokens if token not in generation.eos_token_id]
                text = continuations[waiting[result.request_id].prompt].text(tokens)
                script = waiting[result.request_id].script
                past = ended(text, script)
                if past and not result.is_finished():
                    manager.cancel_request(result.request_id)
                if past or result.is_finished():
                    yield waiting.pop(result.request_id), cut(text, script)

"""The settings of the LLM and its prompts: the group `llm`."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass
class Prompt:
    """A prompt for the LLM. The placeholders are explained in conf/llm/reviewer.yaml."""

    system: str = ""  # system turn; empty omits it
    question: str = ""  # user turn
    answer: str = ""  # assistant turn of a worked example


@dataclass
class LLM:
    """The LLM, which writes feedback for feedback=llm, and feedback and programs for refinements=llm.

    The API key of an endpoint is read from $OPENAI_API_KEY, and no setting holds it.
    """

    name: str = ""  # name of the option, which is the name of its file in conf/llm/
    url: str | None = None  # OpenAI-compatible endpoint, such as http://localhost:8000/v1; null for a local model
    model: str | None = None  # name of the model at the endpoint, or a local model's folder or name on the Hub
    path: str | None = None  # stored answers to use in place of a model: an earlier run's llm_*.jsonl
    extra: dict[str, Any] = field(default_factory=dict)  # additional fields of each request, such as {top_k: -1}
    shots: int = 1  # number of worked examples, from the Prompt split
    n: int | None = None  # number of refinements per program; null for sampler.n
    max_tokens: int = 1024  # maximum number of tokens in an answer
    parallel: int = 8  # number of concurrent requests, or the batch size of a local model
    feedback: Prompt = field(default_factory=Prompt)
    refinement: Prompt = field(default_factory=Prompt)

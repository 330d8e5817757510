"""What another model is, and what it is told: the group `llm`."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass
class Prompt:
    """What another model is told; conf/llm/reviewer.yaml says what may stand in braces."""

    system: str = ""  # empty: no such turn
    question: str = ""
    answer: str = ""  # of a worked example


@dataclass
class LLM:
    """Another model, which writes the words for feedback=llm and words and programs for refinements=llm.

    The key of an endpoint is read from $OPENAI_API_KEY, and stands in no setting.
    """

    name: str = ""  # of what it is told
    url: str | None = None  # of an OpenAI-compatible endpoint, such as http://localhost:8000/v1; null: it is local
    model: str | None = None  # its name there; a local one's folder, or its name on the Hub
    path: str | None = None  # stored answers, JSON lines, in its place: an earlier run's llm_*.jsonl
    extra: dict[str, Any] = field(default_factory=dict)  # more fields of each request, such as {top_k: -1}
    shots: int = 1  # worked examples, from the Prompt split
    max_tokens: int = 1024  # of an answer
    parallel: int = 8  # requests at once; answers of a local model at once
    feedback: Prompt = field(default_factory=Prompt)
    refinement: Prompt = field(default_factory=Prompt)

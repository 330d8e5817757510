"""Many requests at once to an OpenAI-compatible server, with retries."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from typing import Any, TypeVar

from ilf.types import InputError

KEY = "OPENAI_API_KEY"  # read from the environment only, so that it stands in no configuration and no log
RETRIES = 5

for _name in ("httpx", "httpx2"):  # they log a line a request
    logging.getLogger(_name).setLevel(logging.WARNING)

Request = TypeVar("Request")
Reply = TypeVar("Reply")


def answers(
    key: str,
    url: str,
    model: str,
    requests: Sequence[Request],
    ask: Callable[[Any, Request], Reply],
    parallel: int,
    advice: str,
    retries: int = RETRIES,
) -> Iterator[tuple[Request, Reply]]:
    """Yield each request with its reply, in the order in which they come.

    Args:
        key: The setting that holds the address.
        url: The server's address, such as http://localhost:8000/v1.
        model: Named in the error.
        requests: What to ask.
        ask: Asks for one, given a client; it may be asked again where the connection breaks off.
        parallel: Requests at once.
        advice: What to do where the server does not answer.
        retries: Of a request that fails.

    Raises:
        InputError: The server can't be reached or refuses, after all that had been asked has been yielded.
    """
    import httpx
    import openai

    secret = os.environ.get(KEY, "").strip()  # a line's end, as of a file, would show it in an error
    client = openai.OpenAI(base_url=url, api_key=secret or "none", max_retries=retries)

    def ask_again(request: Request) -> Reply:
        for _ in range(retries - 1):
            try:
                return ask(client, request)
            except httpx.TransportError:  # in the middle of a stream, which the client does not repeat
                continue
        return ask(client, request)

    failure: Exception | None = None
    pool = ThreadPoolExecutor(parallel)
    asked = {pool.submit(ask_again, request): request for request in requests}
    try:
        for one in (one for one in as_completed(asked) if not one.cancelled()):
            try:
                reply = one.result()
            except (openai.OpenAIError, httpx.TransportError) as error:  # what is on its way is still taken
                failure = failure or error
                for other in asked:
                    other.cancel()
                continue
            yield asked[one], reply
    finally:  # also where nobody takes the rest, or a signal ends the run, which must not wait for the server
        pool.shutdown(wait=False, cancel_futures=True)
    if failure is not None:
        text = str(failure).replace(secret or "\0", f"${KEY}")  # a server may echo what it was sent
        raise InputError(
            key, url, f"the endpoint does not answer for model {model!r} ({type(failure).__name__}: {text})", advice
        )

"""Sends concurrent requests to an OpenAI-compatible server, with retries."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from typing import Any, TypeVar
from urllib.parse import urlsplit

from ilf.types import InputError

KEY = "OPENAI_API_KEY"  # read only from the environment, to keep it out of configurations and logs
RETRIES = 5

for _name in ("httpx", "httpx2"):  # they log a line per request
    logging.getLogger(_name).setLevel(logging.WARNING)

_LOOPBACK = ("localhost", "127.0.0.1", "::1")

Request = TypeVar("Request")
Reply = TypeVar("Reply")


class Incomplete(Exception):
    """A reply that ended early. The request is sent again."""


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
    """Yield each request with its reply, in the order of the replies.

    Args:
        key: The setting that holds the address.
        url: The server's address, such as http://localhost:8000/v1.
        model: The model's name, for the error message.
        requests: The requests to send.
        ask: Sends one request with a given client. It is called again if it raises Incomplete.
        parallel: The number of concurrent requests.
        advice: What to do if the server doesn't answer.
        retries: The number of retries of a failed request.

    Raises:
        InputError: The server can't be reached, or rejects a request. All replies to requests already sent are
            yielded first.
    """
    import openai

    secret = os.environ.get(KEY, "").strip()  # an error would show it if it ended with a newline, as from a file
    # Clusters set http_proxy, and a proxy can't reach this machine's own servers.
    direct = openai.DefaultHttpxClient(trust_env=False) if urlsplit(url).hostname in _LOOPBACK else None
    client = openai.OpenAI(base_url=url, api_key=secret or "none", max_retries=retries, http_client=direct)

    def ask_again(request: Request) -> Reply:
        for _ in range(retries - 1):
            try:
                return ask(client, request)
            except Incomplete:  # the client does not retry after a reply has begun
                continue
        return ask(client, request)

    failure: Exception | None = None
    pool = ThreadPoolExecutor(parallel)
    asked = {pool.submit(ask_again, request): request for request in requests}
    try:
        for one in (one for one in as_completed(asked) if not one.cancelled()):
            try:
                reply = one.result()
            except (openai.OpenAIError, Incomplete) as error:  # replies under way are still yielded
                failure = failure or error
                for other in asked:
                    other.cancel()
                continue
            yield asked[one], reply
    finally:  # runs also if the caller stops early or a signal stops the run; neither may wait for the server
        pool.shutdown(wait=False, cancel_futures=True)
    if failure is not None:
        text = str(failure).replace(secret or "\0", f"${KEY}")  # a server may echo the key
        raise InputError(
            key, url, f"the endpoint does not answer for model {model!r} ({type(failure).__name__}: {text})", advice
        )

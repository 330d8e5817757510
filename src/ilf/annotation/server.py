"""The HTTP server of the annotation page. It accepts only requests that the page itself makes."""

from __future__ import annotations

import ipaddress
import logging
import signal
import socket
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import urlsplit

import uvicorn
from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse
from fastapi.staticfiles import StaticFiles
from pydantic import BaseModel, Field, field_validator
from pygments.lexers.python import PythonLexer
from pygments.token import Token

from ilf.analysis.refinements import edit_distance
from ilf.annotation.assignments import Refused, Work
from ilf.files import whole
from ilf.settings import Annotate
from ilf.shutdown import Interrupted, dismiss
from ilf.types import InputError

log = logging.getLogger(__name__)

_MOST = 1 << 20  # maximum size of a request in bytes
_HEADERS = {
    # The page shows programs that a model wrote. Load only this server's own files, and never parse text as markup.
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; "
    "require-trusted-types-for 'script'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}
_KINDS = (
    (Token.Comment, "comment"),
    (Token.Literal.String, "string"),
    (Token.Literal.Number, "number"),
    (Token.Keyword, "keyword"),
    (Token.Operator.Word, "keyword"),
    (Token.Name.Function, "function"),
    (Token.Name.Builtin, "builtin"),
)
_LEXER = PythonLexer(stripnl=False, ensurenl=False)

_Text = Annotated[str, Field(max_length=20_000)]  # longer texts would take too long to compare

_Category = Annotated[
    str, Field(max_length=80, pattern=r"^[^;\s]([^;]*[^;\s])?$")
]  # the form that annotation files allow


class _From(BaseModel):
    session: Annotated[str, Field(min_length=8, max_length=64)]  # one browser window
    annotator: Annotated[str, Field(min_length=1, max_length=80)]

    @field_validator("*", mode="before")
    @classmethod
    def _whole(cls, value: Any) -> Any:
        """Replace lone surrogates, which an answer can't hold and a response can't send, as browsers do."""
        values = [
            whole(one) if isinstance(one, str) else one for one in (value if isinstance(value, list) else [value])
        ]
        return values if isinstance(value, list) else values[0]


class _Open(_From):
    task_id: int | None = None  # None: the next open task
    skipped: list[int] = []


class _Run(_From):
    task_id: int
    program: _Text
    refinement: _Text


class _Answer(_Run):
    feedback: _Text
    bugs: Annotated[int, Field(ge=1, le=99)] | None = None
    categories: Annotated[list[_Category], Field(max_length=20)] = []
    seconds: Annotated[float, Field(ge=0, allow_inf_nan=False)]


def bind(settings: Annotate) -> socket.socket:
    """Bind the port, before any slow work starts.

    Raises:
        InputError: The port is not available.
    """
    try:
        family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
        return socket.create_server((settings.host, settings.port), family=family)
    except OSError as error:
        allowed = f"is not available on annotate.host={settings.host} ({error.strerror})"
        raise InputError("annotate.port", settings.port, allowed, "Choose another port, such as 8766.") from None


def serve(work: Work, settings: Annotate, listener: socket.socket) -> None:
    """Serve the page until Ctrl-C."""
    if not ipaddress.ip_address(listener.getsockname()[0]).is_loopback:
        log.warning(
            "annotate.host=%s: everyone who can reach this address can see the tasks, write answers and run programs "
            "in the sandbox. It is safer to use the default and `ssh -L %d:127.0.0.1:%d THIS_MACHINE` on the "
            "annotator's machine.",
            settings.host,
            settings.port,
            settings.port,
        )
    server = uvicorn.Server(uvicorn.Config(application(work, settings.host), log_config=None, log_level="warning"))
    try:
        server.run(sockets=[listener])
    except KeyboardInterrupt:  # stops the server if run.py does not handle signals
        pass
    except Interrupted as stop:
        if stop.number != signal.SIGINT:
            raise
        dismiss()


def application(work: Work, host: str) -> FastAPI:
    """Return the application, which serves the page's files and its API under /api/.

    Args:
        work: The tasks to annotate.
        host: The name or address that the server listens on.
    """
    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)

    @app.middleware("http")
    async def guard(request: Request, call_next: Callable[[Request], Awaitable[Response]]) -> Response:
        refused = _refusal(request, host)
        response = JSONResponse({"detail": refused[1]}, refused[0]) if refused else await call_next(request)
        response.headers.update(_HEADERS)
        return response

    @app.exception_handler(Refused)
    @app.exception_handler(InputError)  # the answer file was changed
    @app.exception_handler(OSError)  # or can't be written to
    def explain(request: Request, error: Exception) -> Response:
        return JSONResponse({"detail": str(error)}, 422 if isinstance(error, Refused) else 500)

    @app.post("/api/progress")
    def progress(body: _Open) -> dict[str, Any]:
        if body.task_id is not None:  # a heartbeat
            work.open(body.session, body.annotator, body.task_id)
        return _progress(work)

    @app.post("/api/open")
    def open_task(body: _Open) -> dict[str, Any]:
        if body.task_id is None:
            body.task_id = work.next(body.session, body.annotator, body.skipped)
        else:
            work.open(body.session, body.annotator, body.task_id)
        return {"task": None if body.task_id is None else _task(work, body.task_id), "progress": _progress(work)}

    @app.post("/api/run")
    def run_tests(body: _Run) -> dict[str, Any]:
        work.open(body.session, body.annotator, body.task_id)
        verdict = work.execute(body.task_id, body.refinement)
        share, longer = edit_distance(body.program, body.refinement), max(len(body.program), len(body.refinement))
        return _verdict(verdict) | {"distance": share, "edits": round(share * longer)}

    @app.post("/api/answer")
    def answer(body: _Answer) -> dict[str, Any]:
        fields = body.model_dump(exclude={"session"})
        return {"saved": work.save(**fields), "progress": _progress(work)}

    @app.post("/api/leave")
    def leave(body: _From) -> dict[str, Any]:
        work.leave(body.session)
        return {}

    app.mount("/", StaticFiles(directory=Path(__file__).parent / "page", html=True))
    return app


def _refusal(request: Request, host: str) -> tuple[int, str] | None:
    """Return the status and reason for refusing a request that the page did not make, or None to accept it."""
    given = request.headers.get("host", "")
    origin = request.headers.get("origin")
    # Another site can point its own name to this server, but can't use an IP address or this machine's names as host.
    if not _is_ours(given, {host, "localhost", socket.gethostname()}):
        return 403, f"This server does not accept requests for the host {given!r}."
    if origin is not None and urlsplit(origin).netloc != given:
        return 403, "Requests from other sites are refused."
    if request.method != "POST":
        return None
    if request.headers.get("content-type", "").partition(";")[0] != "application/json":
        return 415, "The content type must be application/json."
    size = request.headers.get("content-length", "")
    return (
        None
        if size.isdigit() and int(size) <= _MOST
        else (413, f"The request must give its length, of at most {_MOST} bytes.")
    )


def _is_ours(given: str, names: set[str]) -> bool:
    try:
        name = urlsplit(f"//{given}").hostname or ""
        return name in {own.lower() for own in names} or bool(ipaddress.ip_address(name))
    except ValueError:
        return False


def _progress(work: Work) -> dict[str, Any]:
    answered, held = work.answered(), work.held()
    return {
        "run": work.run,
        "tasks": [
            {
                "task_id": i,
                "split": task.split,
                "text": task.text,
                "answered_by": (answered[i].get("annotator") or "somebody") if i in answered else None,
                "saved": answered[i].get("saved") or "" if i in answered else None,
                "held_by": held.get(i, []),
            }
            for i, task in work.tasks.items()
        ],
    }


def _task(work: Work, task_id: int) -> dict[str, Any]:
    """Return everything that the page shows of a task."""
    task, answer = work.tasks[task_id], work.answered().get(task_id)
    programs = []
    for wrong in work.wrong(task_id):
        given = len(task.prompt) if wrong.program.startswith(task.prompt) else 0
        shown = {"given": _highlighted(wrong.program[:given]), "own": _highlighted(wrong.program[given:])}
        programs.append({"text": wrong.program, "count": wrong.count, **shown, **_verdict(wrong.verdict)})
    return {
        "task_id": task_id,
        "split": task.split,
        "text": task.text,
        "setup": _highlighted(task.setup),
        "tests": [_highlighted(test) if task.tests else [("", test)] for test in work.tests(task_id)],
        "programs": programs,
        "answer": answer,
    }


def _verdict(verdict: Any) -> dict[str, Any]:
    return {
        "passed": verdict.passed,
        "verdict": verdict.verdict.replace("_", " "),
        "detail": verdict.detail,
        "tests": verdict.tests,
    }


def _highlighted(code: str) -> list[tuple[str, str]]:
    """Return (kind, text) for each part of some Python code. The page makes elements of them without parsing markup."""
    found: list[tuple[str, str]] = []
    for token, text in _LEXER.get_tokens(code):
        kind = next((name for kinds, name in _KINDS if token in kinds), "")
        if found and found[-1][0] == kind:
            found[-1] = kind, found[-1][1] + text
        else:
            found.append((kind, text))
    return found

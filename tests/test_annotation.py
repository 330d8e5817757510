"""The annotation page: its server over HTTP, its file of answers, and the page in a real browser."""

import contextlib
import json
import os
import shutil
import signal
import socket
import threading
import time
from dataclasses import replace

import httpx
import pytest
import uvicorn
import warm
from conftest import ROOT, SMALL, compose_settings

from ilf.analysis.refinements import edit_distance
from ilf.annotation.answers import Answers
from ilf.annotation.assignments import Work
from ilf.annotation.server import _task, application, bind
from ilf.build import build
from ilf.feedback.human import read_annotations
from ilf.files import whole
from ilf.settings import Annotate
from ilf.tasks.prompts import normalise_newlines
from ilf.types import InputError, Program

# mode=annotate does not restrict the tasks to those in feedback.path, which need not exist.
BUDGET = [*SMALL, "data.limit.refine=12", "data.limit.train=12", "data.limit.test=4", "mode=annotate", "logger=none"]
BUDGET += ["feedback=human", "feedback.path=nowhere.jsonl"]


@pytest.fixture(scope="module")
def stages(tmp_path_factory):
    folder = tmp_path_factory.mktemp("annotation")
    built = build(compose_settings(*BUDGET, f"store.dir={folder}/store", f"output_dir={folder}/run"))
    yield built
    built.sandbox.close()


@pytest.fixture(scope="module")
def failing(stages):
    found = stages.to_annotate()
    assert len(found) > 5
    return found


@pytest.fixture
def answers(tmp_path):
    return Answers(tmp_path / "annotations.jsonl")


def work_of(stages, failing, answers):
    return Work(failing, stages.tasks.by_id, Answers(answers.path), stages.sandbox, "all")


def free_port():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


@contextlib.contextmanager
def serving(work, port=None):
    """Serve in a thread, and yield a client whose base_url is the server's address."""
    settings = Annotate(port=port or free_port())
    with bind(settings) as listener:
        server = uvicorn.Server(uvicorn.Config(application(work, settings.host), log_config=None))
        thread = threading.Thread(target=server.run, args=([listener],))
        thread.start()
        try:
            with httpx.Client(base_url=f"http://127.0.0.1:{settings.port}", timeout=60) as client:
                yield client
        finally:
            server.should_exit = True
            thread.join()


def post(client, path, annotator="Ann", **body):
    done = client.post(f"/api/{path}", json={"session": f"window of {annotator}", "annotator": annotator, **body})
    return done.json() if done.status_code == 200 else (done.status_code, done.json()["detail"])


def save(client, task, annotator="Ann", refinement=None, feedback="Start from 0.", **more):
    """Answer a task with a refinement, by default the unchanged program."""
    program = task["programs"][0]["text"]
    body = {"task_id": task["task_id"], "program": program, "refinement": refinement or program, "feedback": feedback}
    return post(client, "answer", annotator, seconds=1.5, **body | more)


def gold(stages, task_id):
    """Return a refinement that passes: the task's prompt and the body of its gold program."""
    task = stages.tasks.by_id[task_id]
    return task.prompt + task.code.partition(":\n")[2]


def test_the_server_serves_failing_tasks_and_nothing_of_test(stages, failing, answers):
    with serving(work_of(stages, failing, answers)) as client:
        served = post(client, "progress")["tasks"]
        assert {t["task_id"] for t in served} == set(failing)
        whole = json.dumps([post(client, "open", task_id=i) for i in failing])
        for task in stages.tasks.test:
            assert task.text not in whole and task.entry_point not in whole
            program = {"program": task.code, "refinement": task.code}
            for path, body in [("open", {}), ("run", program), ("answer", {**program, "feedback": "x", "seconds": 1})]:
                assert post(client, path, task_id=task.task_id, **body)[0] == 422
    half = [t["split"] for t in served[: len(served) // 2]]  # annotators who stop half way have tasks of both splits
    assert {"refine", "train"} <= set(half)
    assert not answers.path.exists()


@pytest.mark.parametrize("kind", ["challenge", "unseen"])
def test_the_page_shows_the_tests_that_decide(kind, stages, failing, answers):
    some = sorted(failing)[:2]
    own = ("assert f(1) == 1",)
    by_id = {i: replace(stages.tasks.by_id[i], challenge=own if i == some[0] else ()) for i in failing}
    work = Work(failing, by_id, Answers(answers.path), stages.sandbox, kind)
    shown = {i: ["".join(text for _, text in test) for test in _task(work, i)["tests"]] for i in some}
    rest = [list(by_id[i].tests[by_id[i].shown if kind == "unseen" else 0 :]) for i in some]
    assert shown == dict(zip(some, [list(own) if kind == "challenge" else rest[0], rest[1]], strict=True))
    assert all(len(tests) == len(work.execute(i, "def f(:").tests or tests) for i, tests in shown.items())


def test_requests_that_the_page_does_not_send_are_rejected(stages, failing, answers):
    with serving(work_of(stages, failing, answers)) as client:
        body = {"session": "a window", "annotator": "Ann"}
        port = client.base_url.port

        def status(path="/api/progress", **headers):
            headers = {"content-type": "application/json", **{k.replace("_", "-"): v for k, v in headers.items()}}
            return client.post(path, content=json.dumps(body), headers=headers).status_code

        assert status() == status(origin=f"http://127.0.0.1:{port}") == 200
        assert status(host="localhost:9999", origin="http://localhost:9999") == 200  # through a tunnel
        assert status(host=f"evil.example:{port}") == 403  # DNS rebinding: a foreign name that resolves to this host
        assert client.get("/", headers={"host": "evil.example"}).status_code == 403
        for origin in ("http://evil.example", "null", f"http://localhost:{port}", "http://127.0.0.1:1"):
            assert status(origin=origin) == 403, origin
        assert status(content_type="text/plain") == 415  # a type that a form on another site can send
        big = client.post("/api/progress", json={**body, "skipped": [1] * 1_000_000})
        chunked = client.post("/api/progress", content=iter([b"{}"]), headers={"content-type": "application/json"})
        assert big.status_code == chunked.status_code == 413
        for path in ("/", "/page.js", "/nowhere"):
            policy = client.get(path).headers["content-security-policy"]
            assert "default-src 'none'" in policy and "unsafe" not in policy
        for path in ("/../answers.py", "/%2e%2e/answers.py", "/docs", "/openapi.json"):
            assert client.get(path).status_code == 404


def test_only_valid_answers_are_saved(stages, failing, answers):
    with serving(work_of(stages, failing, answers)) as client:
        first, second = (post(client, "open", task_id=i)["task"] for i in sorted(failing)[:2])
        x0, x1 = first["programs"][0]["text"], gold(stages, first["task_id"])
        wrong = x0 + "\n    return None"
        run = post(client, "run", task_id=first["task_id"], program=x0, refinement=wrong)
        assert not run["passed"] and run["detail"] and len(run["tests"]) == 3
        for refused in [
            save(client, first, refinement=wrong),
            save(client, first, feedback=" \n"),
            save(client, first, program=second["programs"][0]["text"]),
            save(client, first, program=x1),
            save(client, first, bugs=0),
            save(client, first, refinement="x" * 30_000),
        ]:
            assert refused[0] == 422 and refused[1], refused
        assert not answers.path.exists()
        run = post(client, "run", task_id=first["task_id"], program=x0, refinement=x1)
        assert run["passed"] and run["tests"] == [True] * 3 and run["distance"] == edit_distance(x0, x1)
        assert run["edits"] == run["distance"] * max(len(x0), len(x1))
        save(client, first, refinement=x1, bugs=2, categories=["logic"], feedback="Only even\r\nnumbers. ")
        save(client, second, refinement=second["programs"][0]["text"] + "\n")
    one, two = answers.rows()
    assert one == {
        "task_id": first["task_id"],
        "prompt": stages.tasks.by_id[first["task_id"]].prompt,
        "Feedback": "Only even\nnumbers.",
        "original_model_completion": x0,
        "unedited_annotator_completion": x1,
        "refinement_edit_distance": round(edit_distance(x0, x1), 4),
        "bugs": 2,
        "categories": ["logic"],
        "annotator": "Ann",
        "seconds": 1.5,
        "saved": one["saved"],
    }
    assert two["unedited_annotator_completion"] == "" and two["refinement_edit_distance"] is None


def test_a_corrected_answer_is_appended_and_replaces_the_earlier_one(stages, failing, answers):
    task_id = min(failing)
    answers.append(old := {"task_id": task_id, "Feedback": "old", "original_model_completion": "def f(:", "mine": [1]})
    with serving(work_of(stages, failing, answers)) as client:
        before = answers.path.read_bytes()
        task = post(client, "open", task_id=task_id)["task"]
        assert task["answer"] == old and task["programs"][-1]["text"] == "def f(:"  # a program of another run
        assert save(client, task, feedback="new")["saved"]["Feedback"] == "new"
        assert post(client, "open", task_id=task_id)["task"]["answer"]["Feedback"] == "new"
        assert sum(t["answered_by"] is not None for t in post(client, "progress")["tasks"]) == 1
    after = answers.path.read_bytes()
    assert after.startswith(before) and len(after.splitlines()) == 2


@pytest.mark.parametrize("servers", [1, 2])
def test_concurrent_annotators_lose_no_answers(stages, failing, answers, servers):
    works = [work_of(stages, failing, answers) for _ in range(servers)]
    done, opened = {"Ann": [], "Ben": [], "Cy": []}, []
    barrier = threading.Barrier(len(done))
    with contextlib.ExitStack() as stack:
        clients = [stack.enter_context(serving(work)) for work in works]

        def annotate(annotator, client):
            barrier.wait()
            while task := post(client, "open", annotator)["task"]:
                opened.append(task["task_id"])
                save(client, task, annotator, feedback="long " * 4000)
                done[annotator].append(task["task_id"])

        threads = [
            threading.Thread(target=annotate, args=(name, clients[i % servers])) for i, name in enumerate(sorted(done))
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        states = [post(client, "progress")["tasks"] for client in clients]
    rows = answers.rows()
    assert sorted((r["annotator"], r["task_id"]) for r in rows) == sorted((a, i) for a in done for i in done[a])
    assert {row["task_id"] for row in rows} == set(failing)
    assert all(task["answered_by"] for state in states for task in state)  # each server sees the other's answers
    if servers == 1:  # servers do not share claims
        assert len(opened) == len(set(opened)) == len(failing)


def test_a_task_is_held_until_its_annotator_leaves_or_times_out(stages, failing, answers, monkeypatch):
    with serving(work_of(stages, failing, answers)) as client:
        first = post(client, "open", "Ann")["task"]["task_id"]
        second = post(client, "open", "Ben")["task"]["task_id"]
        assert first != second and post(client, "open", "Ann")["task"]["task_id"] == first
        state = {t["task_id"]: t["held_by"] for t in post(client, "progress", "Ben")["tasks"]}
        assert state[first] == ["Ann"] and state[second] == ["Ben"]
        assert post(client, "open", "Ben", skipped=[second])["task"]["task_id"] not in (first, second)
        post(client, "leave", "Ann")
        assert post(client, "open", "Ben", skipped=[second])["task"]["task_id"] == first
        monkeypatch.setattr("ilf.annotation.assignments._PATIENCE", 0.0)
        assert post(client, "open", "Cy")["task"]["task_id"] == first  # all claims have expired
        monkeypatch.undo()
        everything = sorted(failing, key=lambda i: i != second)  # skipped tasks come last, in the order of skipping
        assert post(client, "open", "Ben", skipped=everything)["task"]["task_id"] == second


def test_only_a_truncated_last_row_of_the_answers_is_ignored(answers):
    row = {"task_id": 1, "Feedback": "ä", "original_model_completion": "x"}
    text = json.dumps(row, ensure_ascii=False)
    answers.path.write_text(f"{text}\n\n{text[:-9]}")
    assert Answers(answers.path).rows() == [row]
    answers.append(row)
    answers.append(row)
    assert answers.path.read_text() == f"{text}\n\n{text}\n{text}\n" and answers.rows() == [row] * 3
    answers.path.write_text(f"{text}\n{text}")
    answers.append(row)
    assert answers.rows() == [row] * 3
    lines = [
        (b"[1]\n", "jsonl:1"),
        (text.encode() + b"\nx\n", "jsonl:2"),
        (b'{"task_id": "1"}\n', "task_id"),
        (b"\xff\n", ":1"),
    ]
    for bad, where in lines:
        answers.path.write_bytes(bad)
        with pytest.raises(InputError, match=where):
            Answers(answers.path).rows()


def test_a_port_in_use_is_reported():
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        with pytest.raises(InputError, match=rf"annotate\.port={port}: is not available on .*127\.0\.0\.1"):
            bind(Annotate(port=port))


def test_a_restarted_server_resumes_after_a_kill_and_exits_on_sigint(stages, failing, answers, tmp_path):
    store, out = stages.runner.store.root, tmp_path / "printed.out"

    @contextlib.contextmanager
    def page(end: signal.Signals, exit_code: int):
        port = free_port()
        arguments = [*BUDGET, f"store.dir={store}", f"annotate.path={answers.path}", f"annotate.port={port}"]
        out.unlink(missing_ok=True)
        process = warm.start(ROOT / "run.py", arguments, tmp_path, out.with_suffix(""))
        try:
            while not out.exists() or "page:" not in out.read_text():
                assert process.is_alive(), out.with_suffix(".err").read_text()
                time.sleep(0.05)
            with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=60) as client:
                yield client
            os.kill(process.pid, end)
            process.join(20)
            assert process.exitcode == exit_code
        finally:
            process.kill()
            process.join()

    with page(signal.SIGKILL, -signal.SIGKILL) as client:
        task = post(client, "open")["task"]
        row = save(client, task, refinement=gold(stages, task["task_id"]))["saved"]
    assert Answers(answers.path).rows() == [row] and row["unedited_annotator_completion"]
    printed = out.read_text()
    assert f"{len(failing)} failing tasks, 0 of them answered" in printed
    command = printed.partition("train:")[2].split("\n")[0]
    assert f"feedback=human feedback.path={answers.path}" in command and "mode=" not in command
    with answers.path.open("a") as file:
        file.write('{"task_id": 1, "Feed')  # a row that a kill cut off
    with page(signal.SIGINT, 0) as client:
        following = post(client, "open")["task"]
        assert following["task_id"] != task["task_id"]
        assert [row, save(client, following)["saved"]] == Answers(answers.path).rows()


# ---- the page in a browser ---------------------------------------------------------------------------------------

EVIL = "<script>window.hacked = 1</script><img src=x onerror='window.hacked = 1'>"


@pytest.fixture(scope="module")
def browser():
    program = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if program is None:
        pytest.skip("no Chromium is installed: apt-get install chromium")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=["--no-sandbox"])
        yield browser
        browser.close()


def test_the_page_works_in_a_browser(stages, failing, answers, browser):
    """Write, run, save, go back and reload; with the server down, with the keyboard only, and with hostile texts."""
    first, second, third = sorted(failing, key=lambda i: (-len({p.program for p in failing[i]}), i))[:3]
    some = {i: failing[i] for i in (first, second, third)}
    task = stages.tasks.by_id[first]
    body = task.prompt + f'    """{EVIL}"""\n    return {EVIL!r}\n'
    hostile = Program(first, task.split, 9, 0, task.prompt, "", body, replace(some[first][0].verdict, detail=EVIL))
    some[first] = [*some[first], hostile]
    by_id = {**stages.tasks.by_id, first: replace(task, text=f"{EVIL} {task.text}")}

    def work():
        return Work(some, by_id, Answers(answers.path), stages.sandbox, "all")

    context = browser.new_context(viewport={"width": 1400, "height": 900})
    page = context.new_page()
    page.set_default_timeout(10_000)
    errors = []
    page.on("pageerror", lambda error: errors.append(str(error)))

    def wait_for_task(task_id):
        page.wait_for_selector(f"#task-id:text-is('Task {task_id}')")

    port = free_port()
    with serving(work(), port) as client:
        page.goto(str(client.base_url))
        page.fill("#name", "Ann")
        page.keyboard.press("Enter")
        page.wait_for_selector("#work:not([hidden])")
        page.goto(f"{client.base_url}/#{first}")
        wait_for_task(first)
        # Hostile texts are shown as text, also if a program returns them.
        number = page.locator("#programs label").count()
        page.keyboard.press(str(number))
        assert EVIL in page.text_content("#text") and EVIL in page.text_content("#program")
        assert EVIL in page.text_content("#verdict")
        page.keyboard.press("Control+Enter")
        page.wait_for_selector("#outcomes .bad")
        assert EVIL[:40] in page.text_content("#detail")
        assert page.evaluate("[window.hacked, document.images.length, document.scripts.length]") == [None, 0, 1]
        # Keys: 1 chooses a program, f and r focus the boxes, Tab indents, Esc leaves a box, Ctrl+Enter runs.
        page.keyboard.press("1")
        program = page.input_value("#refinement")
        assert program == page.evaluate("document.querySelector('#program pre:last-child').textContent")
        page.keyboard.press("f")
        page.keyboard.type("n1b? is text here")
        page.keyboard.press("Escape")
        page.keyboard.press("r")
        page.keyboard.press("Control+End")
        page.keyboard.press("Enter")
        page.keyboard.press("Tab")
        page.keyboard.type("return None")
        page.keyboard.press("Escape")
        page.keyboard.press("Tab")
        assert page.evaluate("document.activeElement.id") == "run"
        assert page.input_value("#refinement").startswith(program)
        assert page.input_value("#refinement").endswith("    return None")
        page.keyboard.press("Control+Enter")
        page.wait_for_selector("#rules .bad >> text=passes all tests")
        page.keyboard.press("Control+s")  # an incorrect refinement is rejected but kept in the box
        page.wait_for_selector("#notice.bad >> text=does not pass")
        assert not answers.path.exists()
        # A reload restores the typed text.
        page.reload()
        wait_for_task(first)
        assert page.input_value("#feedback") == "n1b? is text here"
        assert page.input_value("#refinement").endswith("return None")
        right = gold(stages, first)
        page.fill("#refinement", right + f"\n    # {'~' * 400}")
        page.keyboard.press("Control+Enter")
        page.wait_for_selector("#rules .good >> text=passes all tests")
        page.fill("#refinement", right)
        page.click("#run")
        page.wait_for_selector("#rules .good >> text=smallest edit")
        page.fill("#refinement", right + "\n")
        page.click("text=Go back to it")
        assert page.input_value("#refinement") == right
        page.wait_for_timeout(1200)  # working time is counted in seconds
        page.fill("#bugs", "2")
        page.get_by_label("missing step").check()
    # While the server is down, the typed text is kept. It can be saved when the server is back.
    page.keyboard.press("Control+s")
    page.wait_for_selector("#notice.bad >> text=does not answer")
    assert page.input_value("#refinement") == right and not answers.path.exists()
    with serving(work(), port) as client:
        page.keyboard.press("Control+s")
        page.wait_for_selector("#notice.good >> text=is saved")
        (row,) = answers.rows()
        assert (row["task_id"], row["annotator"], row["bugs"], row["categories"]) == (first, "Ann", 2, ["missing step"])
        assert row["unedited_annotator_completion"] == right and row["seconds"] >= 1
        assert "1 of 3" in page.text_content("#count")
        here = int(page.text_content("#task-id").split()[1])
        # A skipped task comes last. Another window of the same annotator gets another task.
        page.keyboard.press("n")
        there = ({second, third} - {here}).pop()
        wait_for_task(there)
        other = context.new_page()
        other.goto(str(client.base_url))
        other.wait_for_selector(f"#task-id:text-is('Task {here}')")
        other.close()
        # Back leads to the answered tasks, with the answer in the boxes. Saving again appends a second row.
        page.keyboard.press("b")
        wait_for_task(here)
        page.keyboard.press("b")
        wait_for_task(first)
        assert page.input_value("#feedback") == "n1b? is text here" and page.input_value("#bugs") == "2"
        assert page.input_value("#refinement") == right and page.get_by_label("missing step").is_checked()
        page.fill("#feedback", "better words")
        page.click("#restore")
        page.click("#save")
        page.wait_for_selector("#notice.good")
        assert [r["Feedback"] for r in answers.rows()] == ["n1b? is text here", "better words"]
        assert answers.rows()[1]["unedited_annotator_completion"] == ""
        # The remaining tasks are answered with the keyboard only.
        for _ in range(2):
            page.keyboard.press("f")
            page.keyboard.type("words")
            before = page.text_content("#task-id")
            page.keyboard.press("Control+s")
            page.wait_for_selector(f"#done, #task-id:not(:text-is('{before}'))")
        assert [r["Feedback"] for r in answers.rows()[2:]] == ["words", "words"]
        assert page.is_visible("#done") and "3 of 3" in page.text_content("#count")
        page.keyboard.press("t")
        assert page.locator("#tasks .answered").count() == 3
        page.locator("#tasks button").first.click()
        page.wait_for_selector("#work:not([hidden])")
        for width in (380, 700, 1000, 1400):  # no horizontal overflow
            page.set_viewport_size({"width": width, "height": 844})
            assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert errors == []
    context.close()


ODD = "\0\r\f\x1c\x85\u2028\ufeff\ufffe|`<script>&$\\'\";\U0001f600"


@pytest.mark.parametrize("odd", [*ODD, ODD, "half \ud83d of a pair", "x" * 19_000])
def test_the_server_accepts_and_returns_any_text(stages, failing, answers, odd):
    """The text is part of the annotator's answer and of the failed program."""
    task_id = next(iter(failing))
    program = replace(failing[task_id][0], program=f"def f(:  # {whole(odd)}")
    with serving(work_of(stages, {task_id: [program]}, answers)) as client:

        def sent(path, **body):
            body = {"session": "a window", "annotator": f"Ann{odd}"[:50], **body}
            headers = {"content-type": "application/json"}
            return client.post(f"/api/{path}", content=json.dumps(body), headers=headers)  # json.dumps escapes the text

        (shown,) = sent("open", task_id=task_id).json()["task"]["programs"]
        assert shown["text"] == program.program
        assert "".join(text for _, text in shown["given"] + shown["own"]) == normalise_newlines(program.program)
        body = {"task_id": task_id, "program": program.program, "refinement": f"def g(x):  # {odd}"}
        assert sent("run", **body).status_code == 200
        body |= {"refinement": program.program, "feedback": f"Mend {odd} it.", "seconds": 1}
        done = sent("answer", **body, categories=[f"c{odd}c"[:50].replace(";", "")])
        assert done.status_code == 200, done.text
        assert sent("answer", **body | {"bugs": -1, "feedback": odd}).status_code == 422  # the error quotes the text
        assert sent("progress").status_code == 200
    (row,) = Answers(answers.path).rows()
    assert row["Feedback"] == normalise_newlines(f"Mend {whole(odd)} it.")
    assert row["original_model_completion"] == program.program
    assert len(read_annotations(answers.path)) == 1

"""The manual builds without warnings, its reference is complete, and its error messages are current."""

import ast
import html
import os
import re
import subprocess
import sys

import pytest
from conftest import ROOT

from ilf.checks.keys import known_keys


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """Build the manual, and return its folder. Broken links and pages outside of the navigation are errors."""
    pytest.importorskip("mkdocs", reason="requirements-dev.txt is not installed")
    folder = tmp_path_factory.mktemp("site")
    quiet = {"NO_MKDOCS_2_WARNING": "1", "DISABLE_MKDOCS_2_WARNING": "true"}
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)]
    done = subprocess.run(command, cwd=ROOT, env=os.environ | quiet, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return folder


def test_reference_has_every_option_with_its_command(site):
    page = (site / "reference" / "options" / "index.html").read_text()
    headings = [html.unescape(heading) for heading in re.findall(r"<h3 [^>]*>([^<]+)<", page)]
    text = html.unescape(re.sub(r"<[^>]+>", "", page))
    for file in (ROOT / "conf").glob("*/**/*.yaml"):
        group, *parts = file.relative_to(ROOT / "conf").with_suffix("").parts
        name = f"hydra/launcher={parts[-1]}" if group == "hydra" else f"{group}={'/'.join(parts)}"
        command = re.search(r"(?m)^# (python run\.py.*)$", file.read_text()).group(1)
        assert name in headings and command in text, file


def test_reference_has_every_key(site):
    page = (site / "reference" / "settings" / "index.html").read_text()
    groups = {path.name for path in (ROOT / "conf").iterdir() if path.is_dir()} - {"llm", "model"}
    keys = [key for key in known_keys() if key in groups or key.partition(".")[0] not in groups]
    assert len(keys) > 60
    for key in keys:
        assert f"<code>{key}</code>" in page or f'id="{key.replace(".", "")}"' in page, key


def test_reference_has_the_base_classes_of_components(site):
    page = (site / "reference" / "api" / "index.html").read_text()
    for name in ("feedback.source.Source", "protocols.Refiner", "refinements.Refinements", "protocols.Sampler"):
        assert f'id="ilf.{name}"' in page, name
    for name in ("protocols.Objective", "executors.Executor", "tasks.data.Data", "training.ilf_module.ILFModule"):
        assert f'id="ilf.{name}"' in page, name


def string_patterns_of_the_code():
    """Return the strings of the code as regular expressions, each with the length of its constant text."""
    found = set()
    for file in (ROOT / "src").rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            parts = node.values if isinstance(node, ast.JoinedStr) else [node]
            texts = [part.value if isinstance(part, ast.Constant) else None for part in parts]
            own = "".join(text for text in texts if isinstance(text, str)).strip()
            if len(own) > 8:
                found.add(("".join(".*?" if text is None else re.escape(str(text)) for text in texts), len(own)))
    return [(re.compile(pattern), length) for pattern, length in found]


def share_covered(message, known):
    """Return the share of a message's characters that strings of the code match, including the inserted values."""
    covered = set()
    for pattern, length in known:
        for match in pattern.finditer(message):
            if 4 * length >= len(match[0]):
                covered |= set(range(*match.span()))
    return len(covered) / len(message)


def test_error_messages_in_the_faq_match_the_code():
    """Users search the FAQ for the text of an error, so outdated messages would not be found."""
    page = (ROOT / "docs" / "faq.md").read_text().partition("## Errors")[2]
    known = string_patterns_of_the_code()
    blocks = re.findall(r"```\n(error.*?)```", page, re.DOTALL)
    messages = [" ".join(one.split()) for block in blocks for one in block.split("error: ")[1:]]
    assert len(messages) > 20
    for message in messages:
        if not message.startswith("In 'config': Could not find"):  # an error of Hydra
            assert share_covered(re.sub(r"^\S+?=\S+: ", "", message), known) > 0.5, message

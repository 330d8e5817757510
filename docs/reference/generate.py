"""Write the reference pages options.md and settings.md from conf/ and src/ilf/settings.py as MkDocs builds the manual.

Run by the plugin gen-files; nothing is written into docs/.
"""

from __future__ import annotations

import ast
import io
import re
import tokenize
from collections.abc import Iterator
from pathlib import Path

import mkdocs_gen_files

ROOT = Path(__file__).parents[2]
CONF, SETTINGS = ROOT / "conf", ROOT / "src" / "ilf" / "settings.py"
# The dataclasses of other modules that the settings hold.
ELSEWHERE = {
    "LLM": ROOT / "src" / "ilf" / "feedback" / "llm_settings.py",
    "Prompt": ROOT / "src" / "ilf" / "feedback" / "llm_settings.py",
}
INTRODUCTION = {
    "options": """# Options

Every group of settings and its options, generated from the files under `conf/`. Choose an option with `GROUP=OPTION`,
and override a key with `GROUP.KEY=VALUE`. Options of the groups `arm`, `experiment`, `debug`, `hparams_search` and
`paths` set keys of other groups.
""",
    "settings": """# Settings

Every key outside the options, with its type and default, generated from `src/ilf/settings.py`. The keys of an option
are on the page [Options](options.md); `python run.py --cfg job` shows the keys and values of a command.
""",
}


def header(text: str) -> tuple[str, str, str]:
    """Return an option's command, its description, and the YAML below these comments."""
    lines = text.split("\n")
    count = next((i for i, line in enumerate(lines) if not line.startswith("#")), len(lines))
    comments = [line.lstrip("#").strip() for line in lines[:count] if not line.startswith("# @package")]
    command = next((line for line in comments if line.startswith("python run.py")), "")
    description = " ".join(line for line in comments if line != command)
    return command, description, "\n".join(lines[count:]).strip()


def options() -> Iterator[str]:
    """Yield the lines of the page on options: a section for each group."""
    groups: dict[str, list[Path]] = {}
    for file in sorted(CONF.rglob("*.yaml")):
        if file.parent != CONF:
            group = file.relative_to(CONF).parts[0]
            groups.setdefault("hydra/launcher" if group == "hydra" else group, []).append(file)
    yield INTRODUCTION["options"]
    about = {field: comment for field, _, _, comment in fields(SETTINGS, "Settings")[1]}
    for group, files in groups.items():
        yield f"## {group}\n"
        if about.get(group):
            yield f"{about[group]}.\n"
        for file in files:
            name = file.relative_to(CONF / group).with_suffix("")
            command, description, body = header(file.read_text())
            yield f"### {group}={name}\n"
            if description:
                yield f"{description}\n"
            yield f"```bash\n{command}\n```\n"
            if body:
                yield f'??? note "conf/{group}/{name}.yaml"\n'
                yield "    ```yaml"
                yield from (f"    {line}".rstrip() for line in body.split("\n"))
                yield "    ```\n"


def comments(text: str) -> dict[int, str]:
    """Return the comments of a Python file by line number."""
    tokens = tokenize.generate_tokens(io.StringIO(text).readline)
    return {t.start[0]: t.string.lstrip("# ") for t in tokens if t.type == tokenize.COMMENT}


def fields(file: Path, name: str) -> tuple[str, list[tuple[str, str, str, str]]]:
    """Return the docstring of a dataclass, and each field's name, type, default and comment."""
    text = file.read_text()
    said, lines = comments(text), text.split("\n")
    (node,) = (n for n in ast.parse(text).body if isinstance(n, ast.ClassDef) and n.name == name)
    arguments = dict(re.findall(r"(?m)^        (\w+): (.*(?:\n {12}.*)*)", ast.get_docstring(node, clean=False) or ""))
    found = []
    for statement in node.body:
        if not isinstance(statement, ast.AnnAssign) or not isinstance(statement.target, ast.Name):
            continue
        first, last = statement.lineno, statement.end_lineno or statement.lineno
        above: list[str] = []
        while first - 2 >= 0 and lines[first - 2].strip().startswith("#"):
            above.insert(0, said[first - 1])
            first -= 1
        comment = " ".join([*above, *(said[i] for i in range(statement.lineno, last + 1) if i in said)])
        field = statement.target.id
        comment = comment or " ".join(arguments.get(field, "").split())
        default = ast.unparse(statement.value) if statement.value else ""
        default = re.sub(r"field\(default_factory=(?:lambda: )?(.*)\)$", r"\1", default)
        found.append((field, ast.unparse(statement.annotation), default, comment))
    docstring = (ast.get_docstring(node) or "").split("\n\n")[0]
    return docstring, found


def settings(name: str = "Settings", prefix: str = "", file: Path = SETTINGS) -> Iterator[str]:
    """Yield the lines of the page on settings: a table for each dataclass, those that it holds after it."""
    groups = {path.name for path in CONF.iterdir() if path.is_dir()}
    docstring, found = fields(file, name)
    if prefix:
        yield f"## {prefix.rstrip('.')}\n"
        yield f"{docstring}\n"
    else:
        yield INTRODUCTION["settings"]
    yield "| key | type | default | |"
    yield "| --- | --- | --- | --- |"
    nested = []
    for field, kind, default, comment in found:
        held = re.fullmatch(r"(?:Annotated\[)?(\w+)(?:, Needs\(.*\)\])?", kind)
        inner = held[1] if held else ""
        known = ELSEWHERE.get(inner, SETTINGS)
        if re.search(rf"(?m)^class {inner}\b", known.read_text()) if inner else False:
            nested.append((inner, f"{prefix}{field}.", known))
        elif not prefix and field in groups:
            yield f"| `{field}` | [option](options.md#{field}) | | {comment} |"
        elif not prefix and "Needs" in kind:  # a data set to evaluate on
            yield f"| `{field}` | [option](options.md#data), as `data@{field}` | | {comment} |"
        elif not re.search("Component|Annotated", kind):
            cells = (text.replace("|", "\\|") for text in (kind, default))
            kind, default = (f"`{cell}`" if cell else "" for cell in cells)
            yield f"| `{prefix}{field}` | {kind} | {default} | {comment.replace('|', chr(92) + '|')} |"
    yield ""
    for inner, below, known in nested:
        yield from settings(inner, below, known)


for page, lines in (("options", options()), ("settings", settings())):
    with mkdocs_gen_files.open(f"reference/{page}.md", "w") as file:
        file.write("\n".join(lines))

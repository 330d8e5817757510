"""Judge the programs of a file: python -m ilf.sandbox FILE.

FILE (- for standard input) has one JSON object per line. Each object has program and tests (a list of one or more
assert statements, or of functions and classes as pytest collects them). For a program that reads standard input and
writes standard output, it has program, inputs and outputs (lists of strings of equal length) and optionally
compare_output (tokens, the default, or exact). These fields are optional: id, setup_code (only with tests) and
time_limit (seconds of processor time, for each run if there are inputs). The command prints one JSON object per line,
in the same order, with id, verdict, detail, tests (true or false for each test or input) and seconds (processor time;
with inputs, of the longest run).
"""

import argparse
import ast
import dataclasses
import json
import sys
from typing import Any

from ilf.sandbox import Job, Limits, Sandbox
from ilf.sandbox.jobs import cores, is_time_limit
from ilf.types import InputError

_COLUMNS = (
    "must be a JSON object with program (a string) and tests (a list of one or more strings), or in place of tests "
    "inputs and outputs (lists of as many strings) and optionally compare_output. The fields id, setup_code (a string) "
    "and time_limit (seconds, at most 3600) are optional"
)


def _job(line: str, place: str) -> tuple[Any, Job]:
    wrong = InputError(place, line[:80], _COLUMNS, "Correct that line.")
    try:
        row = json.loads(line)
        program, limit, setup = row["program"], row.get("time_limit"), row.get("setup_code") or ""
        lists = {name: row.get(name) or [] for name in ("tests", "inputs", "outputs")}
    except (ValueError, TypeError, AttributeError, KeyError):
        raise wrong from None
    texts = all(isinstance(found, list) and all(isinstance(one, str) for one in found) for found in lists.values())
    if not texts or not isinstance(program, str) or not isinstance(setup, str) or not is_time_limit(limit):
        raise wrong
    for test in lists["tests"]:
        try:
            ast.parse(test)
        except (SyntaxError, ValueError) as error:
            raise InputError(f"{place}: tests", test[:80], f"must be Python ({error})", "Correct it.") from None
    how: dict[str, Any] = {name: tuple(found) for name, found in lists.items()}
    if row.get("compare_output") is not None:
        how["compare_output"] = row["compare_output"]
    try:
        made = Job(program, setup=setup, time_limit=limit, **how)
    except InputError as error:
        key, *said = error.args
        raise InputError(f"{place}: {'setup_code' if key == 'setup' else key}", *said) from None
    return row.get("id"), made


def main() -> int:
    """Judge the programs of the file that the command line names."""
    defaults = Limits(workers=cores())
    parser = argparse.ArgumentParser(
        "python -m ilf.sandbox", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("file", metavar="FILE")
    parser.add_argument("--compare", choices=("exact", "approx"), default=defaults.compare)
    parser.add_argument("--isolation", choices=("require", "best", "off"), default=defaults.isolation)
    parser.add_argument("--trust-eq", action="store_true", help="let objects of a program define equality")
    names = "packages that programs may import, such as numpy,pandas"
    parser.add_argument("--packages", type=lambda text: tuple(filter(None, text.split(","))), default=(), help=names)
    for name in ("time_limit", "memory_mb", "output_mb", "disk_mb", "workers"):
        default = getattr(defaults, name)
        parser.add_argument("--" + name.replace("_", "-"), type=type(default), default=default, help=f"({default})")
    args = vars(parser.parse_args())
    file = args.pop("file")
    try:
        with sys.stdin if file == "-" else open(file, encoding="utf-8") as lines:
            rows = [_job(line, f"{file}:{n}") for n, line in enumerate(lines, 1) if line.strip()]
        sandbox = Sandbox(Limits(**args))
        print(sandbox.isolation, file=sys.stderr)
        for (name, _), verdict in zip(rows, sandbox.run([job for _, job in rows]), strict=True):
            print(json.dumps({"id": name, **dataclasses.asdict(verdict)}))
    except (InputError, OSError, UnicodeDecodeError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""comparison.csv, .md and .png: one table over the jobs of a sweep, made anew as each job ends."""

from __future__ import annotations

import csv
import io
import json
import os
from pathlib import Path
from typing import Any

from filelock import FileLock

from ilf.analysis.report import arm_name, bars, model_name, p_text, percent
from ilf.analysis.statistics import holm
from ilf.store import write_atomically

_VARIED = ("data", "model", "feedback", "refiner_kind", "refinements", "seed")


def read_results(sweep: Path) -> list[dict[str, Any]]:
    """Return the results of a sweep's jobs, in the order of their folders' numbers."""
    files = sorted(sweep.glob("*/results.json"), key=lambda f: (int(f.parent.name.split("_")[0]), f.parent.name))
    return [json.loads(file.read_text(encoding="utf-8")) | {"folder": file.parent.name} for file in files]


def _label(result: dict[str, Any], varied: list[str]) -> str:
    rest = [f"{name.removesuffix('_kind')}={result[name]}" for name in varied if name != "refinements"]
    return ", ".join([arm_name(result["arm"], result["annotator"]), *rest])


def write_comparison(sweep: Path) -> None:
    """Write the comparison of all jobs that have ended so far. Safe to call from several jobs at once."""
    with FileLock(sweep / ".comparison.lock"):
        results = read_results(sweep)
        if results:
            _write(sweep, results)


def _write(sweep: Path, results: list[dict[str, Any]]) -> None:
    varied = [name for name in _VARIED if len({str(r[name]) for r in results}) > 1]
    names = list(
        dict.fromkeys(
            k for r in results for part in ("zero_shot", "finetuned") for k in (r[part] or {}).get("ci95", {})
        )
    )
    corrected = {}
    for name in names:
        tested = [i for i, r in enumerate(results) if r["delta"]]
        for i, p in zip(tested, holm([results[i]["delta"][name]["p_value"] for i in tested]), strict=True):
            corrected[i, name] = p
    rows = []
    for i, result in enumerate(results):
        row: dict[str, Any] = {
            "folder": result["folder"],
            "status": result["status"],
            **{n: result[n] for n in _VARIED},
            "training_examples": result["counts"]["training_examples"],
        }
        for name in names:
            for part in ("zero_shot", "refiner", "finetuned"):
                found = result[part]
                row[f"{part}_{name}"] = found and found[name]
                row[f"{part}_{name}_low"], row[f"{part}_{name}_high"] = found["ci95"][name] if found else (None, None)
            d = result["delta"] and result["delta"][name]
            row |= {
                f"delta_{name}": d and d["mean"],
                f"p_{name}": d and d["p_value"],
                f"p_holm_{name}": corrected.get((i, name)),
            }
        rows.append(row)
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_atomically(sweep / "comparison.csv", text.getvalue())
    write_atomically(sweep / "comparison.md", _markdown(results, names, varied, corrected))
    _plot(sweep, results, names, varied)


def _markdown(
    results: list[dict[str, Any]], names: list[str], varied: list[str], corrected: dict[tuple[int, str], float]
) -> str:
    head = [
        "run",
        "examples",
        *(f"refiner {n} (%)" for n in names[:1]),
        *(f"{n} (%)" for n in names),
        *(f"delta {n} (points)" for n in names),
        *(f"p {n} (Holm)" for n in names),
    ]
    lines = ["| " + " | ".join(head) + " |", "| --- " * len(head) + "|"]
    zero = {json.dumps(r["zero_shot"]): r for r in results if r["zero_shot"]}
    for r in zero.values():
        label = (
            "zero-shot"
            if len(zero) == 1
            else "zero-shot, " + ", ".join(f"{n}={r[n]}" for n in varied if n != "refinements")
        )
        cells = [percent(r["zero_shot"][n], r["zero_shot"]["ci95"][n]) for n in names]
        blank = [""] * len(names)
        lines.append("| " + " | ".join([label, "", "", *cells, *blank, *blank]) + " |")
    for i, r in enumerate(results):
        cells = [f"{_label(r, varied)}", "" if (n := r["counts"]["training_examples"]) is None else str(n)]
        cells += [percent(r["refiner"][n], r["refiner"]["ci95"][n]) if r["refiner"] else "" for n in names[:1]]
        if r["finetuned"]:
            cells += [percent(r["finetuned"][n], r["finetuned"]["ci95"][n]) for n in names]
        else:
            cells += [r["status"], *[""] * (len(names) - 1)]
        cells += [percent(r["delta"][n]["mean"], r["delta"][n]["ci95"]) if r["delta"] else "" for n in names]
        cells += [p_text(corrected[i, n]).removeprefix("= ") if (i, n) in corrected else "" for n in names]
        lines.append("| " + " | ".join(cells) + " |")
    matched = all(r["matched"] for r in results)
    ids = {json.dumps(r["training_task_ids"]) for r in results if r["training_task_ids"]}
    notes = [f"{r['folder']} ended with status {r['status']}." for r in results if r["status"] != "complete"]
    if not matched or len(ids) > 1:
        notes.append("Unmatched: not all runs trained on the same task ids.")
    return "\n".join(
        [
            *lines,
            "",
            "pass@k on Test (the refiner's: on the annotated Train tasks) in percent, 95% intervals over tasks; "
            "delta is paired over tasks against zero-shot; p is a two-sided sign-flip permutation test, Holm-corrected "
            "over the runs.",
            *notes,
            "",
        ]
    )


def _plot(sweep: Path, results: list[dict[str, Any]], names: list[str], varied: list[str]) -> None:
    rows: list[tuple[str, dict[str, Any] | None, dict[str, Any] | None]] = []  # label, on Test, the refiner's
    for r in results:
        if r["zero_shot"] and r["zero_shot"] not in [test for _, test, _ in rows]:
            rows.append(("zero-shot" if not rows else f"zero-shot ({r['folder']})", r["zero_shot"], None))
    rows += [(_label(r, varied), r["finetuned"], r["refiner"]) for r in results if r["finetuned"] or r["refiner"]]
    if not rows:
        return

    def points(part: int, name: str) -> list[tuple[float, float, float] | None]:
        found: list[Any] = [row[part] for row in rows]
        return [p and (p[name], *p["ci95"][name]) for p in found]

    series = {name: points(1, name) for name in names}
    if len({json.dumps(refiner) for _, _, refiner in rows if refiner}) > 1:  # else it is the same for all
        series |= {f"refiner {name}": points(2, name) for name in names[:1]}
    scratch = sweep / f".comparison.{os.getpid()}.png"
    bars(scratch, [label for label, _, _ in rows], series, f"data {results[0]['data']}, model {model_name(results[0])}")
    scratch.replace(sweep / "comparison.png")

"""The report of all studies in a folder, from their JSON files alone.

`efficientnetv2 study --only=report` writes REPORT.md, report.html, which needs
no other file, and the pictures. The same JSON files give the same report, byte
for byte.
"""

import collections
import hashlib
import json
import os
import pathlib
import re
import shlex
from collections.abc import Callable, Mapping

import markdown
import markupsafe

from efficientnetv2 import declarative, files, progress, reports
from efficientnetv2.reports import plots
from efficientnetv2.study import analysis, definition, records
from efficientnetv2.study.analysis import Analysis, Interval
from efficientnetv2.study.records import StudyError, read_json

MARKDOWN, PAGE = "REPORT.md", "report.html"
# Written by benchmarks/fusing.py, if the study has it.
COSTS = "costs.json"
_OVERFITS = 5.0  # points by which training exceeds the test


def build(
    output: str | os.PathLike, log: Callable[[str], None] = progress.say
) -> None:
    """Writes the report of all studies of a folder.

    Raises:
        StudyError: if there is none with results, or they cannot be read.
    """
    output = pathlib.Path(output)
    described = []
    for path in sorted(output.glob(f"*/{records.STUDY}")):
        found = analysis.load_results(path.parent)
        if found.arms:
            described.append(_Report(found, path.parent).values())
    if not described:
        raise StudyError(
            f"There are no results of a study in {output}. Run "
            "efficientnetv2 study --study=regularization "
            f"--output_dir={output} first."
        )
    text = reports.render("study.md.j2", studies=described)
    text = re.sub(r"\n{3,}", "\n\n", text).strip() + "\n"
    files.write_text(output / MARKDOWN, text)
    files.write_text(output / PAGE, to_html(text, output))
    log(f"Report: {output / MARKDOWN} and {output / PAGE}")


def to_html(text: str, folder: pathlib.Path) -> str:
    """Returns Markdown as a page that needs no other file.

    Args:
        text: of the Markdown.
        folder: that its links to SVG files begin at.
    """

    def picture(match: re.Match) -> str:
        svg = plots.inline((folder / match[2]).read_text(encoding="utf-8"))
        return (
            f'<figure><div class="wide" role="img" aria-label="{match[1]}">'
            f"{svg}</div><figcaption>{match[1]}</figcaption></figure>"
        )

    body = markdown.markdown(text, extensions=["tables", "fenced_code"])
    body = body.replace("<table>", '<div class="wide"><table>')
    body = body.replace("</table>", "</table></div>")
    body = re.sub(r'<p><img alt="(.*?)" src="(.*?)" /></p>', picture, body)
    return reports.render(
        "study.html.j2", body=markupsafe.Markup(body), title="Studies"
    )


class _Report:
    """What the template shows of a study."""

    def __init__(self, found: Analysis, folder: pathlib.Path):
        self.found, self.study, self.folder = found, found.study, folder
        self.state = read_json(folder / records.STUDY)
        self.times = read_json(folder / records.TIMES)
        self.costs = {}
        if (folder / COSTS).exists():
            self.costs = read_json(folder / COSTS)

    def values(self) -> dict:
        """Returns the values that templates/study.md.j2 names."""
        study, found = self.study, self.found
        verdicts = [found.judge(question) for question in study.questions]
        pictures = plots.draw_study(found, self.step_costs(), self.folder)
        models = self.state["models"]
        some = self.state["configs"][study.base]
        wanted = len(study.arms) * len(study.budgets) * study.seeds
        return {
            "title": study.title,
            "description": study.description,
            "pictures": [
                (path.relative_to(self.folder.parent).as_posix(), caption)
                for path, caption in pictures
            ],
            "missing": max(0, wanted - len(self._planned())),
            "answers": [
                (
                    each.question.claim,
                    f"**{each.verdict}**",
                    str(each.difference),
                    each.difference.n,
                )
                for each in verdicts
            ],
            "reasons_of_answers": [each.reason for each in verdicts],
            "notes": self._notes(),
            "arms": [self._arm(arm) for arm in found.arms],
            "budgets": [f"{budget:.0%}" for budget in study.budgets],
            "by_budget": [
                (
                    arm.title,
                    *(
                        _with_half(found.top1(arm.name, budget))
                        for budget in study.budgets
                    ),
                )
                for arm in found.arms
            ],
            **self._tuning(),
            **self._cost_table(models),
            "batch_size": some["train"]["batch_size"],
            "measured_on": _machine(self.times["machine"]),
            "reasons": study.reasons,
            **self._commands(),
            "provenance": self._provenance(),
            "overrides": study.overrides or "nothing",
            "arm_overrides": [
                (arm.title, f"`{arm.overrides}`" if arm.overrides else "-")
                for arm in study.arms
            ],
        }

    def _planned(self) -> set:
        """Returns which of the planned runs have a result."""
        return {
            (row["arm"], row["budget"], row["seed"])
            for row in self.found.rows
            if row["seed"] < self.study.seeds
        }

    def _notes(self) -> list[str]:
        """Returns whether the study overfits, and how to read intervals."""
        notes = [
            "Supported: the whole interval lies on the claim's side; refuted: "
            "on the other; undecided: it contains the limit. Each interval is "
            "a 95% interval by itself."
        ]
        for arm in self.found.arms:
            if arm.strength == 0:
                gap = self.found.gap(arm.name, max(self.study.budgets))
                does = "overfits" if gap >= _OVERFITS else "does NOT overfit"
                notes.append(
                    f"**Does plain training overfit here?** '{arm.title}' is "
                    f"{gap:.1f} points more accurate on its training images "
                    f"than on the test: it {does} (from {_OVERFITS:g} points "
                    "on), which is what regularization is for."
                )
        return notes

    def _arm(self, arm: definition.Arm) -> tuple:
        """Returns the row of an arm at the whole budget."""
        found, budget = self.found, max(self.study.budgets)
        top1 = found.top1(arm.name, budget)
        strengths = found.values(arm.name, budget, "strength").values()
        difference, single = "base", "-"
        if arm.name != self.study.base:
            difference = str(
                found.difference(arm.name, self.study.base, budget, budget)
            )
        if top1.n > 1:
            single = " to ".join(f"{each:.2f}" for each in top1.of_one_more())
        return (
            arm.title,
            ", ".join(f"{each:g}" for each in sorted(set(strengths))),
            f"{top1.mean:.2f}",
            f"{top1.sd:.2f}" if top1.n > 1 else "-",
            top1.n,
            difference,
            single,
            f"{found.gap(arm.name, budget):+.1f}",
            *(
                f"{found.mean(arm.name, budget, key):,.0f}"
                for key in ("epochs", "seconds", "clock_seconds")
            ),
        )

    def _tuning(self) -> dict:
        """Returns the table of what was tried, if strengths were tuned."""
        tune, path = self.study.tune, self.folder / records.TUNING
        if tune is None or not path.exists():
            return {"tuning": []}
        content = read_json(path)
        tried = collections.defaultdict(list)
        for row in content["tried"]:
            key = row["arm"], row["budget"], row["strength"]
            tried[key].append(100 * row["top1"])
        rows = []
        for name, budgets in content["chosen"].items():
            for budget, choice in budgets.items():
                cells = []
                for strength in tune.strengths:
                    values = tried[name, float(budget), strength]
                    text = f"{sum(values) / len(values):.2f}"
                    cells.append(f"**{text}**" if strength == choice else text)
                title = self.study.arm(name).title
                rows.append((title, f"{float(budget):.0%}", *cells))
        return {
            "tuning": rows,
            "split": tune.split,
            "tuning_seeds": len(tune.seeds),
            "strengths": [f"strength {each:g}" for each in tune.strengths],
        }

    def step_costs(self) -> dict[str, Mapping[str, float]]:
        """Returns the time of a step, by kind of time and arm."""
        costs = {}
        seconds = self.times["seconds"]
        largest = {
            name: max(of_arm, key=int) for name, of_arm in seconds.items()
        }
        costs["CPU, measured"] = {
            name: 1e3 * seconds[name][size] for name, size in largest.items()
        }
        if self.costs:
            costs["TPU v5e, compiler's estimate"] = {
                name: arm["tpu"]["estimated_cycles"]
                for name, arm in self.costs["arms"].items()
            }
        return costs

    def _cost_table(self, models: Mapping) -> dict:
        """Returns the table of the costs of models and steps."""
        seconds = self.times["seconds"]
        sizes = sorted({int(s) for of_arm in seconds.values() for s in of_arm})
        header = ["arm", "parameters", "multiply-adds"]
        header += [f"CPU step at {size} px (ms)" for size in sizes]
        note, rows, seen = "", [], set()
        if self.costs:
            header += [
                *("TPU step (1,000 cycles)", "TPU GFLOP", "TPU MB accessed"),
                *("CUDA GFLOP", "CUDA MB, unfused", "depthwise convolutions"),
            ]
            note = (
                " TPU: one training step of "
                f"{self.costs['batch_size']} images of "
                f"{self.costs['image_size']} pixels, compiled for a TPU "
                f"{self.costs['environment']['topology']} and not run; its "
                "cycles, operations and bytes are the compiler's estimates. "
                "CUDA: the same step lowered for a GPU, before a GPU's "
                "compiler fuses operations; bytes are an upper limit, and "
                "nothing was compiled or run for a GPU."
            )
        for name, model in models.items():
            key = (model["parameters"], model["multiply_adds"])
            if key in seen:
                continue
            seen.add(key)
            row = [
                self.study.arm(name).title,
                f"{model['parameters']:,}",
                f"{model['multiply_adds']:,}",
                *(
                    f"{1e3 * seconds[name][str(size)]:.1f}"
                    if str(size) in seconds[name]
                    else "-"
                    for size in sizes
                ),
            ]
            if name in self.costs.get("arms", {}):
                row += _compiled(self.costs["arms"][name])
            rows.append(row)
        return {"cost_header": header, "costs": rows, "cost_note": note}

    def _commands(self) -> dict[str, str]:
        """Returns what to type to run the study, or one arm, again."""
        study, name = self.study, self.study.name
        if name not in declarative.names("studies"):
            name = f"{name}.yaml"
        words = ["efficientnetv2", "study", f"--study={name}"]
        output = f"--output_dir={self.folder.parent}"
        arm = study.questions[0].arm if study.questions else study.base
        seed = max(study.seeds, study.most_seeds)
        return {
            "command": shlex.join([*words, "--output_dir=runs/study"]),
            "rerun": shlex.join(
                [*words, f"--arm={arm}", f"--seed={seed}", output]
            ),
        }

    def _provenance(self) -> str:
        machines = collections.Counter(
            _machine(row["machine"]) for row in self.found.rows
        )
        counts = "; ".join(
            f"{count} run{'s' * (count != 1)} on {name}"
            for name, count in sorted(machines.items())
        )
        code = json.dumps(self.state["code"], sort_keys=True).encode()
        return (
            f"{counts}. Code: SHA-256 {hashlib.sha256(code).hexdigest()[:16]} "
            f"of the hashes of {len(self.state['code'])} files, which "
            f"{records.STUDY} lists, as it does each arm's configuration."
        )


def _compiled(arm: Mapping) -> list[str]:
    """Returns the cells of what compilers say of an arm."""
    tpu, cuda = arm["tpu"], arm["cuda"]
    return [
        f"{tpu['estimated_cycles'] / 1e3:,.0f}",
        f"{tpu['floating_point_operations'] / 1e9:.2f}",
        f"{tpu['bytes_accessed'] / 1e6:.0f}",
        f"{cuda['floating_point_operations'] / 1e9:.2f}",
        f"{cuda['bytes_accessed_unfused'] / 1e6:.0f}",
        f"{cuda['depthwise_convolutions']}",
    ]


def _machine(machine: Mapping) -> str:
    return f"{machine['cpu']}, {machine['cores']} cores"


def _with_half(found: Interval) -> str:
    """Returns '88.12 +- 0.30', without the half-width for one value."""
    if not found.n:
        return "-"
    half = f" ± {found.half_width:.2f}" if found.n > 1 else ""
    return f"{found.mean:.2f}{half}"

"""Compares us with our peers; writes results/benchmarks.md and .json.

    make benchmark
    python benchmarks/run.py --only=step,randaugment --repeats=5
    python benchmarks/run.py --torch_python=/path/to/python

Each measurement is a process of its own (ours.py and peers.py). Those that are
compared run alternately (A B C A B C ...), so that a slow minute of the machine
affects all of them; the median of each counts. PyTorch Image Models is measured
by the Python that --torch_python names, if it has it. --accelerator measures
training steps on a GPU, in mixed precision.
"""

import argparse
import dataclasses
import importlib.metadata
import json
import os
import pathlib
import platform
import statistics
import subprocess
import sys
from collections.abc import Callable, Sequence

from efficientnetv2.study import records

ROOT = pathlib.Path(__file__).resolve().parent.parent

PACKAGES = ("tensorflow", "keras", "numpy")


@dataclasses.dataclass(frozen=True)
class Script:
    """One thing that is measured.

    Attributes:
        label: what the table calls it.
        command: without the common options.
        bar: what the ratio to ours must reach; None for no bar.
    """

    label: str
    command: Sequence[str]
    bar: float | None = None


@dataclasses.dataclass(frozen=True)
class Comparison:
    """Scripts that do the same job; the first is ours.

    Attributes:
        name: for --only.
        title: of the table.
        unit: of the values.
        scripts: ours, and its peers.
        lower_is_better: whether values are times or shares, and bars upper
            bounds.
        bar: of our value itself.
    """

    name: str
    title: str
    unit: str
    scripts: Sequence[Script]
    lower_is_better: bool = False
    bar: float | None = None


def comparisons(options: argparse.Namespace) -> list[Comparison]:
    """Returns everything that is measured."""
    torch_python = options.torch_python or sys.executable
    cores = os.cpu_count() or 1

    def compare(name, title, unit, *rows, lower_is_better=False, bar=None):
        """Makes a comparison of rows: label, words of the command, bar."""
        scripts = []
        for label, words, *bars in rows:
            subject, *flags = words.split()
            file = "ours"
            if subject.startswith(("keras_", "timm_")):
                file = "peers"
            python = sys.executable
            if subject.startswith("timm_"):
                python = torch_python
            command = (python, f"benchmarks/{file}.py", subject, *flags)
            command += (f"--seconds={options.seconds}",)
            scripts.append(Script(label, command, *bars))
        return Comparison(name, title, unit, scripts, lower_is_better, bar)

    def steps(size, batch, bar=None, precision="float32"):
        shape = f"--size={size} --batch={batch}"
        title = f"Training step, B0, {size} px, batch {batch}"
        if precision != "float32":
            shape += f" --precision={precision}"
            title += f", {precision}"
        no_xla = f"keras_step {shape} --no_xla"
        return compare(
            "step",
            title,
            "images/s",
            ("ours", f"step {shape}"),
            (
                "keras.applications, fit as it comes (XLA)",
                f"keras_step {shape}",
                bar,
            ),
            ("keras.applications, jit_compile=False", no_xla, bar),
            (
                "the same, an operation per core",
                f"{no_xla} --threads=1,{cores}",
                bar,
            ),
            (
                "PyTorch Image Models, channels_last",
                f"timm_step {shape}",
                bar,
            ),
        )

    if options.accelerator:
        return [
            steps(size, batch, precision="mixed_bfloat16")
            for size, batch in ((128, 256), (224, 128))
        ]
    shape = "--size=64 --batch=64"
    results = [
        steps(size, batch, bar)
        for size, batch, bar in ((32, 128, 1.7), (64, 64, 1.5), (128, 32, 1.5))
    ]
    results.append(
        compare(
            "bfloat16",
            "Training step with products in bfloat16, B0, 64 px, batch 64",
            "images/s",
            (
                "runtime.mixed_precision=bfloat16_products",
                f"step {shape} --precision=bfloat16_products",
            ),
            ("float32", f"step {shape}", 1.3),
        )
    )
    results.append(
        compare(
            "kernels",
            "Parts of our training step, B0, 64 px, batch 64",
            "images/s",
            ("ours", f"step {shape}"),
            ("1x1 convolutions by Keras", f"step {shape} --without=pointwise"),
            (
                "depthwise convolutions by Keras",
                f"step {shape} --without=depthwise",
            ),
            ("batch normalization by Keras", f"step {shape} --without=norm"),
            ("with moving average and weight decay", f"step {shape} --full"),
        )
    )
    results += [
        compare(
            "randaugment",
            f"RandAugment, 2 layers, magnitude 10, {size} px",
            "images/s",
            ("ours", f"randaugment --size={size} --batch={batch}"),
            (
                "keras.layers.RandAugment",
                f"keras_randaugment --size={size} --batch={batch}",
                5.0,
            ),
            (
                "image by image in tf.data",
                f"randaugment --size={size} --batch={batch} --per_image",
                bar,
            ),
        )
        for size, batch, bar in (
            (32, 128, None),
            (128, 32, None),
            (224, 32, 1.2),
        )
    ]
    results += [
        compare(
            "jpeg",
            "Photographs of 500 x 375 in JPEG to 224 px",
            "images/s",
            (
                "crops for an accelerator that augments",
                "jpeg --size=224 --on_device",
            ),
            ("whole images for it", "jpeg --size=224 --on_device --whole"),
            bar=1100.0,
        ),
    ]
    for batch in (1, 8, 32):
        ours = f"inference --size=224 --batch={batch}"
        results.append(
            compare(
                "inference",
                f"Latency of inference, B0, 224 px, batch {batch}",
                "ms",
                ("SavedModel", ours),
                (
                    "keras.applications, its exported SavedModel",
                    f"keras_{ours}",
                    1.0,
                ),
                ("Keras", f"{ours} --form=keras"),
                ("ONNX Runtime", f"{ours} --form=onnx"),
                ("LiteRT int8, image by image", f"{ours} --form=int8"),
                lower_is_better=True,
            )
        )
    results += [
        compare(
            "first_step",
            "From the start of the program to the end of the first step, B0, "
            "32 px, batch 128",
            "s",
            ("ours", "first_step"),
            (
                "keras.applications, fit as it comes (XLA)",
                "keras_first_step",
                0.6,
            ),
            (
                "keras.applications, jit_compile=False",
                "keras_first_step --no_xla",
                0.6,
            ),
            lower_is_better=True,
        ),
        compare(
            "waiting",
            "Share of its time that the recipe fashion_mnist waits for data",
            "of 1",
            ("ours", "waiting"),
            lower_is_better=True,
            bar=0.05,
        ),
    ]
    for flag, what, unit, bar in (
        ("", "Seconds to", "s", 30.0),
        (" --memory", "Peak memory of", "GiB", 4.0),
    ):
        results.append(
            compare(
                "folder",
                f"{what} the first step on a folder of {options.images:,} "
                "images, B0",
                unit,
                ("ours", f"folder --images={options.images}{flag}"),
                lower_is_better=True,
                bar=bar,
            )
        )
    return results


def run_script(command: Sequence[str]) -> dict:
    """Returns the JSON that a script prints last.

    Raises:
        SystemExit: if it fails; shows its messages.
    """
    paths = (str(ROOT), os.environ.get("PYTHONPATH"))
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths))},
    )
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} failed:\n{done.stderr}")
    return json.loads(done.stdout.splitlines()[-1])


def run_comparison(
    comparison: Comparison,
    repeats: int,
    log: Callable[[str], None] = print,
    run: Callable[[Sequence[str]], dict] = run_script,
) -> dict:
    """Measures the scripts of a comparison alternately.

    Args:
        comparison: what to run.
        repeats: times that each script runs.
        log: prints one line.
        run: from a command to its result.

    Returns:
        The comparison with a list 'rows', one a script: 'label', 'command',
        and either 'skipped', a sentence, or 'values', their 'median', the
        median 'p95' where scripts have one, the
        'ratio' of the median of the first script to it, 'bar' and whether it
        'reaches' the bar (None without one).
    """
    log(comparison.title)
    answers: dict[Script, list[dict]] = {s: [] for s in comparison.scripts}
    for _ in range(repeats):
        for script, before in answers.items():
            if before and "skipped" in before[-1]:
                continue
            before.append(run(script.command))
            log(f"  {script.label}: {before[-1].get('value', 'skipped')}")
    rows = []
    for script, given in answers.items():
        command = " ".join(("python", *script.command[1:]))
        row = {"label": script.label, "command": command}
        if "skipped" in given[-1]:
            rows.append({**row, "skipped": given[-1]["skipped"]})
            continue
        values = [answer["value"] for answer in given]
        rows.append(
            {
                **row,
                "values": values,
                "median": statistics.median(values),
                "versions": given[-1].get("versions", {}),
            }
        )
        if "p95" in given[-1]:
            p95 = statistics.median(answer["p95"] for answer in given)
            rows[-1]["p95"] = p95
    for script, row in zip(comparison.scripts, rows, strict=True):
        if "skipped" not in row:
            row.update(_judge(comparison, script, row["median"], rows[0]))
    return {
        "name": comparison.name,
        "title": comparison.title,
        "unit": comparison.unit,
        "lower_is_better": comparison.lower_is_better,
        "rows": rows,
    }


def _judge(comparison: Comparison, script: Script, median, ours: dict) -> dict:
    is_ours = script is comparison.scripts[0]
    ratio = None if is_ours else ours["median"] / max(median, 1e-12)
    bar, figure = script.bar, ratio
    if is_ours:
        bar, figure = comparison.bar, median
    reaches = None
    if bar is not None:
        reaches = figure <= bar if comparison.lower_is_better else figure >= bar
    return {"ratio": ratio, "bar": bar, "reaches": reaches}


def machine() -> dict:
    """Returns what the figures depend on besides the commands."""
    return {
        "processor": records.machine()["cpu"],
        "cores": os.cpu_count(),
        "system": platform.platform(),
        "python": platform.python_version(),
        **{name: importlib.metadata.version(name) for name in PACKAGES},
    }


def markdown(content: dict) -> str:
    """Returns the report: machine, versions, command, figures."""
    lines = [
        "# Benchmarks",
        "",
        f"Written by `{content['command']}`.",
        "",
        ", ".join(f"{k} {v}" for k, v in content["machine"].items()) + ".",
        "",
        "Scripts that are compared ran alternately, each in a process of its "
        f"own, {content['repeats']} times; the median counts, and the ratio "
        "is ours to the peer's.",
    ]
    for comparison in content["comparisons"]:
        lines += [
            *("", f"## {comparison['title']}", ""),
            f"| what | {comparison['unit']}, median | each run | ratio | bar |",
            "| --- | --- | --- | --- | --- |",
        ]
        skipped = []
        for row in comparison["rows"]:
            if "skipped" in row:
                skipped += ["", row["skipped"]]
            else:
                lines.append(_markdown_row(row, comparison["lower_is_better"]))
        lines += [*skipped, "", "```"]
        lines += [row["command"] for row in comparison["rows"]] + ["```"]
    return "\n".join(lines) + "\n"


def _markdown_row(row: dict, lower_is_better: bool) -> str:
    versions = ", ".join(f"{k} {v}" for k, v in row["versions"].items())
    bound = "at most" if lower_is_better else "at least"
    cells = (
        row["label"] + (f" ({versions})" if versions else ""),
        _digits(row["median"])
        + (f", p95 {_digits(row['p95'])}" if "p95" in row else ""),
        ", ".join(map(_digits, row["values"])),
        "" if row["ratio"] is None else f"{row['ratio']:.2f}",
        ""
        if row["bar"] is None
        else f"{bound} {row['bar']:g}: {'yes' if row['reaches'] else 'no'}",
    )
    return "| " + " | ".join(cells) + " |"


def _digits(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", help="names of comparisons, by comma")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=20.0)
    parser.add_argument("--torch_python", help="a Python with torch and timm")
    parser.add_argument("--accelerator", action="store_true")
    parser.add_argument("--images", type=int, default=100_000, help="of folder")
    parser.add_argument(
        "--out", default=str(ROOT / "results" / "benchmarks"), help="no suffix"
    )
    options = parser.parse_args()
    known = comparisons(options)
    names = list(dict.fromkeys(each.name for each in known))
    chosen = options.only.split(",") if options.only else names
    for name in chosen:
        if name not in names:
            parser.error(f"--only: {name!r} is none of {', '.join(names)}")
    pathlib.Path(options.out).parent.mkdir(parents=True, exist_ok=True)
    content = {
        "command": " ".join(["python", *sys.argv]),
        "machine": machine(),
        "repeats": options.repeats,
        "comparisons": [],
    }
    for comparison in known:
        if comparison.name in chosen:
            content["comparisons"].append(
                run_comparison(comparison, options.repeats)
            )
            # What has been measured is kept, whatever comes.
            text = json.dumps(content, indent=1) + "\n"
            pathlib.Path(f"{options.out}.json").write_text(text)
            pathlib.Path(f"{options.out}.md").write_text(markdown(content))


if __name__ == "__main__":
    main()

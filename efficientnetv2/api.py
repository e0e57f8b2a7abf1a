"""The modes of the command line, as functions."""

import os
import pathlib
from collections.abc import Callable, Sequence

import keras
import ml_collections

from efficientnetv2.data import preview, registry
from efficientnetv2.models import architecture
from efficientnetv2.serving import export
from efficientnetv2.serving.spec import ServingSpec
from efficientnetv2.training import checkpoints, distribution, loop, runs

WorkerLost = distribution.WorkerLost


def execute(
    config: ml_collections.ConfigDict,
    model_dir: str | os.PathLike,
    mode: str = "train_and_eval",
    checkpoint: str | None = None,
    log: Callable[[str], None] = print,
    formats: Sequence[str] = ("saved_model",),
    allow_disagreement: bool = False,
) -> None:
    """Runs a mode of the command line.

    Args:
        config: from `config.load`.
        model_dir: folder of the run.
        mode: 'train_and_eval', 'train', 'eval', 'report' or 'export'.
        checkpoint: for all but training, see `checkpoints.find`.
        log: prints one line.
        formats, allow_disagreement: for 'export', see `export.export`.

    Raises:
        UserError: see `loop` and `export`.
    """
    run = runs.make_run(config, model_dir, log)
    if mode == "eval":
        result = loop.evaluate_checkpoint(run, checkpoint)
        run.update_metrics(eval=result)
        return
    if mode == "report":
        evaluate_and_report(run, checkpoint)
        return
    if mode == "export":
        export_run(run, checkpoint, formats, allow_disagreement)
        return
    runs.set_up_runtime(config)
    run.is_chief = distribution.is_chief(run.strategy)
    if not run.is_chief:
        run.log = _silent
        loop.train(run)
        return
    with runs.claimed(run):
        _train(run, mode)


def _train(run: runs.Run, mode: str) -> None:
    metrics, split = run.read_metrics(), run.config.eval.split
    if metrics.get("finished"):
        run.log(
            f"{run.model_dir} is finished: {split} top-1 "
            f"{metrics['test']['top1']:.2%}. Name another --model_dir for "
            "another run."
        )
        return
    run.update_metrics(environment=runs.environment())
    loop.train(run)
    if mode == "train":
        run.log(f"Trained: {run.model_dir}")
        return
    result = evaluate_and_report(run, None)
    folder = export_saved_model(run)
    metrics = run.update_metrics(test=result, finished=True)
    run.log(
        f"Done: {split} top-1 {result['top1']:.2%} after "
        f"{metrics['train_seconds'] / 60:.1f} minutes of training. Model: "
        f"{folder}"
    )


def evaluate_and_report(run: runs.Run, checkpoint: str | None = None) -> dict:
    """Evaluates a checkpoint and writes report.html; returns the metrics."""
    # Imports matplotlib, which training does not wait for.
    from efficientnetv2.study import run_report

    observer = run_report.Observer()
    result = loop.evaluate_checkpoint(run, checkpoint, observer)
    preview.write(run.config, run.model_dir / preview.FOLDER, log=_silent)
    run.log(f"Report: {run_report.write(run, observer, result)}")
    return result


def _silent(_: str) -> None:
    """Logs nothing: where the data came from has been said."""


def _network(run: runs.Run, checkpoint: str | None):
    """Returns the averaged weights of a checkpoint in a network, and it."""
    found = checkpoints.load(checkpoints.find(run.model_dir, checkpoint))
    keras.mixed_precision.set_dtype_policy("float32")
    network = architecture.build(run.config.model.to_dict())
    loop.load_averaged(network, found)
    return network, found


def _class_names(run: runs.Run) -> list[str]:
    return registry.load_info(run.config.data.ds_name).class_names


def export_saved_model(run: runs.Run) -> pathlib.Path:
    """Exports the best checkpoint to saved_model/, as training ends with."""
    network, found = _network(run, None)
    spec = ServingSpec.from_config(run.config, _class_names(run))
    folder = export.export_saved_model(
        network, spec, run.model_dir / "saved_model"
    )
    run.log(f"Exported {found.path.name} to {folder}")
    return folder


def export_run(
    run: runs.Run,
    checkpoint: str | None,
    formats: Sequence[str],
    allow_disagreement: bool,
) -> None:
    """Exports a checkpoint, and keeps in metrics.json how it compares.

    Args:
        run: of the checkpoint.
        checkpoint: see `checkpoints.find`.
        formats, allow_disagreement: see `export.export`.

    Raises:
        ExportError: if an export differs too much from Keras, after the
            others are in place.
    """
    network, found = _network(run, checkpoint)
    written, faults = export.export(
        network,
        run.config,
        _class_names(run),
        run.model_dir,
        formats,
        allow_disagreement,
        run.log,
    )
    for facts in written.values():
        facts |= {"checkpoint": found.path.name, "step": found.meta["step"]}
    before = run.read_metrics().get("exports", {})
    run.update_metrics(exports={**before, **written})
    if faults:
        text = "; ".join(f"{name}: {fault}" for name, fault in faults.items())
        raise export.ExportError(
            f"{text}. Not written; --allow_disagreement writes it nevertheless."
        )
    run.log(f"Exported {found.path.name} to {run.model_dir}")

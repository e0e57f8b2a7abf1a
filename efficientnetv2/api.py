"""The modes of the command line, as functions.

config = efficientnetv2.load_config("fashion_mnist")
metrics = efficientnetv2.train(config, "runs/fashion_mnist")
print(metrics["test"]["top1"])
"""

import os
import pathlib
import sys
from collections.abc import Callable, Sequence

import keras
import ml_collections

from efficientnetv2 import (
    backend,
    checkpoints,
    engines,
    evaluation,
    files,
    notices,
    progress,
    recovery,
    runs,
)
from efficientnetv2 import config as config_lib
from efficientnetv2.data import faults, fingerprint, output, registry
from efficientnetv2.errors import DataError, UserError
from efficientnetv2.models import architecture, weights
from efficientnetv2.serving import export as export_lib
from efficientnetv2.serving import loading, predict
from efficientnetv2.serving.spec import ServingSpec
from efficientnetv2.train import train_run

WorkerLost = recovery.WorkerLost


def train(
    config: ml_collections.ConfigDict,
    model_dir: str | os.PathLike,
    callbacks: Sequence[keras.callbacks.Callback] = (),
    log: Callable[[str], None] = progress.say,
) -> dict:
    """Trains, evaluates and exports a SavedModel, as `--mode=train_and_eval`.

    Resumes an interrupted run; returns at once if it is finished.

    Args:
        config: from `efficientnetv2.load_config`.
        model_dir: folder of the run.
        callbacks: Keras callbacks, called in addition to the run's own.
        log: prints one line.

    Returns:
        The content of metrics.json: 'test' with 'top1', 'top5' and 'images',
        'evaluations' (the curve), 'train_seconds' and more.

    Raises:
        UserError: for data that cannot be obtained, a model_dir that cannot be
            written or belongs to another run, or a loss that is not finite.
    """
    run = runs.Run(model_dir, log, callbacks)
    _train(config, run, "train_and_eval")
    return run.read_metrics()


def evaluate(
    model_dir: str | os.PathLike,
    checkpoint: str | None = None,
    hparam_str: str = "",
    log: Callable[[str], None] = progress.say,
) -> dict:
    """Evaluates the averaged weights of a run on every image of `eval.split`.

    Args:
        model_dir: folder of the run.
        checkpoint: 'best' (default), 'last', a step or a file.
        hparam_str: overrides, such as 'eval.split=minival'.
        log: prints one line.

    Returns:
        'top1' and 'top5' in [0, 1], 'cross_entropy', 'images', 'checkpoint',
        'step', 'dataset' and 'split'.

    Raises:
        UserError: if there is no such run, checkpoint or data.
    """
    run = runs.Run(model_dir, log)
    config = _config_of(run, hparam_str)
    engines.set_up(config, training=False)
    data = runs.Splits(config, log)
    return evaluation.evaluate_checkpoint(config, data, run, checkpoint)


def evaluate_weights(
    config: ml_collections.ConfigDict,
    model_name: str,
    weights: str | os.PathLike,
    log: Callable[[str], None] = progress.say,
) -> dict:
    """Evaluates weights that belong to no run on every image of `eval.split`.

    Args:
        config: from `efficientnetv2.load_config`, for the dataset.
        model_name: a name of hparams/models/, or a YAML file.
        weights: 'imagenet', or what `efficientnetv2.load_weights` reads.
        log: prints one line.

    Returns:
        'top1' and 'top5' in [0, 1], among all classes of the model, and
        'images'.

    Raises:
        UserError: for weights or data that cannot be obtained, or classes that
            the model does not know.
    """
    engines.set_up(config, training=False)
    result = predict.evaluate_classifier(
        loading.load_classifier(model_name, weights=str(weights)),
        runs.Splits(config, log)[config.eval.split],
        config.eval.batch_size,
    )
    log(
        f"{config.data.ds_name} {config.eval.split}: top-1 "
        f"{result['top1']:.2%} top-5 {result['top5']:.2%} "
        f"({result['images']:,} images, {model_name} with weights {weights})"
    )
    return result


def export(
    model_dir: str | os.PathLike,
    formats: Sequence[str] = ("saved_model",),
    checkpoint: str | None = None,
    allow_disagreement: bool = False,
    log: Callable[[str], None] = progress.say,
) -> dict[str, dict]:
    """Exports a run's model, in one or more formats, into the run's folder.

    Args:
        model_dir: folder of the run.
        formats: any of 'saved_model', 'keras', 'litert' and 'onnx'.
        checkpoint: 'best' (default), 'last', a step or a file.
        allow_disagreement: also write exports that differ too much from Keras.
        log: prints one line.

    Returns:
        A dict from each export, such as 'int8', to its details: 'file',
        'bytes', 'agreement' and 'accuracy' on the images compared.

    Raises:
        UserError: for an unknown format, a required package that is not
            installed, or an export that differs too much; the others are
            written first.
    """
    run = runs.Run(model_dir, log)
    config = _config_of(run)
    with files.writing(run.model_dir):
        return export_run(config, run, checkpoint, formats, allow_disagreement)


def _config_of(run: runs.Run, hparam_str="") -> ml_collections.ConfigDict:
    """Returns the configuration of the run in a folder."""
    saved = config_lib.read_saved(run.model_dir)
    config = config_lib.load(hparam_str=hparam_str, saved=saved)
    return runs.as_begun(run, config)


def execute(
    config: ml_collections.ConfigDict,
    model_dir: str | os.PathLike,
    mode: str = "train_and_eval",
    checkpoint: str | None = None,
    log: Callable[[str], None] = progress.say,
    formats: Sequence[str] = ("saved_model",),
    allow_disagreement: bool = False,
) -> None:
    """Runs a mode of the command line.

    Args:
        config: from `config.load`.
        model_dir: folder of the run.
        mode: 'train_and_eval' (train, evaluate, report, export),
            'train_and_test' (train, evaluate), 'train', 'eval', 'report' or
            'export'.
        checkpoint: for all but training, see `checkpoints.find_checkpoint`.
        log: prints one line.
        formats, allow_disagreement: see `serving.export.export_formats`.

    Raises:
        UserError: see `train`, `evaluate` and `export`.
    """
    run = runs.Run(model_dir, log)
    if mode.startswith("train"):
        _train(config, run, mode)
        return
    config = runs.as_begun(run, config)
    engines.set_up(config, training=False)
    with files.writing(run.model_dir):
        if mode == "eval":
            result = evaluation.evaluate_checkpoint(
                config, runs.Splits(config, log), run, checkpoint
            )
            run.update_metrics(eval=result)
        elif mode == "report":
            report(config, run, checkpoint)
        else:
            export_run(config, run, checkpoint, formats, allow_disagreement)


def _train(config: ml_collections.ConfigDict, run: runs.Run, mode: str) -> None:
    config = runs.as_begun(run, config)
    if engines.is_chief(config):
        with runs.claimed(run, config):
            _train_as_chief(config, run, mode)
    else:
        run.log = _silent
        train_run(config, runs.Splits(config, run.log), run)


def _train_as_chief(
    config: ml_collections.ConfigDict, run: runs.Run, mode: str
) -> None:
    metrics, split = run.read_metrics(), config.eval.split
    if config.train.extend:
        total = config_lib.run_plan(config).total_steps
        if metrics.get("steps", 0) < total:
            metrics = run.update_metrics(finished=False)
    if metrics.get("finished"):
        run.log(
            f"{run.model_dir} is finished: {split} top-1 "
            f"{metrics['test']['top1']:.2%}. Name another --model_dir for "
            "another run."
        )
        return
    engines.set_up(config)
    run.update_metrics(environment=runs.environment())
    data = runs.Splits(config, run.log)
    # Checks that take seconds run before the first step.
    names = [config.train.split, config.eval.val_split]
    names += [split] if mode != "train" else []
    splits = {name: data[name] for name in names if name is not None}
    faults.before_training(config, splits, run.log)
    engine = train_run(config, data, run)
    if mode == "train":
        run.log(f"Trained: {run.model_dir}")
        return
    engine.end_training()
    model, arguments = "", (config, data, run, None)
    if mode == "train_and_eval":
        result = _evaluate_and_report(*arguments, engine)
        model = f" Model: {export_saved_model(config, run, engine)}"
    else:
        result = evaluation.evaluate_checkpoint(*arguments, engine=engine)
    metrics = run.update_metrics(test=result, finished=True)
    run.log(
        f"Done: {split} top-1 {result['top1']:.2%} after "
        f"{metrics['train_seconds'] / 60:.1f} minutes of training.{model}"
    )
    if mode == "train_and_eval":
        run.log(notices.next_commands(run.model_dir, data[split]))


def _evaluate_and_report(config, data, run, checkpoint=None, engine=None):
    """Evaluates a checkpoint and writes report.html; returns the metrics."""
    # Imports matplotlib, which training does not wait for.
    from efficientnetv2.reports import run as run_report

    observer = run_report.Observer()
    result = evaluation.evaluate_checkpoint(
        config, data, run, checkpoint, observer, engine
    )
    output.write_preview(config, run.model_dir / output.PREVIEW, log=_silent)
    path = run_report.write_report(config, run, observer, result)
    if not config.data.multi_label:
        names = registry.load_info(config.data.ds_name).class_names
        run.log(notices.class_table(observer.labels, observer.predicted, names))
    run.log(f"Report: {path}")
    return result


def report(
    config: ml_collections.ConfigDict,
    run: runs.Run,
    checkpoint: str | None = None,
) -> None:
    """Writes report.html; without the run's data, from the recorded metrics."""
    from efficientnetv2.reports import run as run_report

    metrics = run.read_metrics()
    known = metrics.get("test") or metrics.get("eval")
    try:
        data = runs.Splits(config, run.log)
        _evaluate_and_report(config, data, run, checkpoint)
    except DataError as error:
        info = registry.load_info(config.data.ds_name)
        folder = registry.data_dir(config.data.data_dir)
        here = registry.state(info, folder) != "-"
        if here or known is None:
            raise
        run.log(f"Using the recorded metrics only, without images: {error}")
        run.log(f"Report: {run_report.write_report(config, run, None, known)}")


def _silent(_: str) -> None:
    """Logs nothing: the source of the data was already logged."""


def _network(config, run: runs.Run, checkpoint: str | None, engine=None):
    """Returns the averaged weights of a checkpoint in a network, and it."""
    found = checkpoints.read_named(run.model_dir, checkpoint)
    if engine is not None and keras.config.dtype_policy().name == "float32":
        network = engine.network
    else:
        keras.config.set_dtype_policy("float32")
        network = architecture.build_network(config.model.to_dict())
    weights.load_averaged(network, found)
    return network, found


def export_saved_model(
    config: ml_collections.ConfigDict, run: runs.Run, engine=None
) -> pathlib.Path:
    """Exports the best checkpoint to saved_model/, as training does last."""
    if backend.active() == "jax":
        backend.run_on_tensorflow(
            "efficientnetv2.api", str(run.model_dir), log=run.log
        )
        return run.model_dir / "saved_model"
    network, found = _network(config, run, None, engine)
    spec = ServingSpec.from_config(
        config, fingerprint.names_of_run(config, run.model_dir)
    )
    folder = export_lib.replace_saved_model(
        network, spec, run.model_dir / "saved_model"
    )
    run.log(f"Exported {found.path.name} to {folder}")
    return folder


def export_run(
    config: ml_collections.ConfigDict,
    run: runs.Run,
    checkpoint: str | None,
    formats: Sequence[str],
    allow_disagreement: bool,
) -> dict[str, dict]:
    """Exports a checkpoint and records the comparison in metrics.json.

    Args:
        config, run: of the checkpoint.
        checkpoint: see `checkpoints.find_checkpoint`.
        formats, allow_disagreement: see `serving.export.export_formats`.

    Returns:
        The exports that were written, name to details.

    Raises:
        ExportError: if an export differs too much from Keras, after the
            others are in place.
    """
    if backend.active() == "jax":
        backend.run_on_tensorflow(
            "efficientnetv2.main",
            "--mode=export",
            f"--model_dir={run.model_dir}",
            f"--formats={','.join(formats)}",
            f"--allow_disagreement={str(allow_disagreement).lower()}",
            *([f"--checkpoint={checkpoint}"] if checkpoint else []),
            log=run.log,
        )
        exports = run.read_metrics()["exports"]
        return {n: e for n, e in exports.items() if n.split("/")[0] in formats}
    network, found = _network(config, run, checkpoint)
    fingerprint.say_changes(config, run.model_dir, run.log)
    written, faults = export_lib.export_formats(
        network,
        config,
        fingerprint.names_of_run(config, run.model_dir),
        run.model_dir,
        formats,
        allow_disagreement,
        run.log,
        run.read_metrics().get("test"),
    )
    for facts in written.values():
        facts |= {"checkpoint": found.path.name, "step": found.meta["step"]}
    before = run.read_metrics().get("exports", {})
    run.update_metrics(exports={**before, **written})
    if faults:
        text = "; ".join(f"{name}: {fault}" for name, fault in faults.items())
        raise export_lib.ExportError(
            f"{text}. Not written; --allow_disagreement writes it anyway."
        )
    run.log(f"Exported {found.path.name} to {run.model_dir}")
    return written


if __name__ == "__main__":
    # The child process of `export_saved_model`.
    try:
        own = runs.Run(sys.argv[1])
        export_saved_model(_config_of(own), own)
    except UserError as user_error:
        sys.exit(f"error: {user_error}")

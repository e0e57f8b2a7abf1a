"""A run from configuration to results: train, evaluate, export."""

import math
from collections.abc import Callable

import keras

from efficientnetv2 import tables, zoo
from efficientnetv2.data import (
    faults,
    fingerprint,
    pipeline,
    registry,
    sources,
)
from efficientnetv2.models import architecture, counting, weights
from efficientnetv2.training import (
    checkpoints,
    distribution,
    optimizers,
    progressive,
    runs,
    schedules,
)
from efficientnetv2.training.fitting import Fitting, evaluator
from efficientnetv2.training.trainer import Trainer


def build_trainer(run: runs.Run) -> Trainer:
    """Builds network, moving average and optimizer."""
    with run.strategy.scope():
        return _build_in_scope(run)


def _build_in_scope(run: runs.Run) -> Trainer:
    config = run.config
    runs.set_up_runtime(config)
    model_config = config.model.to_dict()
    network = architecture.build(model_config)
    ema_network = network
    if config.train.ft_init_ckpt:
        _initialize(network, config, run.log)
    if config.train.ema_decay:
        ema_network = architecture.build(model_config, name="ema")
        ema_network.set_weights(network.get_weights())
    mix = None
    if config.data.mix_on_device:
        mix = pipeline.mixer(config, run.stages)
    trainer = Trainer(network, ema_network, config, run.plan, mix)
    optimizer = optimizers.build_optimizer(
        config, schedules.learning_rate(config, run.plan)
    )
    trainer.compile(optimizer=optimizer, jit_compile=runs.uses_xla(config))
    optimizer.build(trainer.trained)
    return trainer


def _initialize(network, config, log) -> None:
    """Loads the weights that fine-tuning starts from.

    A classifier of as many classes is loaded too, but not that of a run on
    classes of other names.
    """
    classifier = network.get_layer("logits")
    fresh = classifier.get_weights()
    path = zoo.resolve_source(network, config.train.ft_init_ckpt)
    text = str(weights.load(network, path, skip_classifier=True))
    names = registry.load_info(config.data.ds_name).class_names
    # A checkpoint lies in a folder of the run.
    if fingerprint.class_names(path.parent.parent) not in (None, names):
        classifier.set_weights(fresh)
        text += " Its classes have other names: the classifier starts anew."
    log(text)


def describe_model(run: runs.Run, trainer: Trainer) -> str:
    """Returns a line with the model's parameters and multiply-adds."""
    network = trainer.network
    trained = sum(math.prod(variable.shape) for variable in trainer.trained)
    sizes = sorted({stage.image_size for stage in run.stages})
    cost = ", ".join(
        f"{counting.format_count(_multiply_adds(run, size))} at {size} px"
        for size in sizes
    )
    return (
        f"{network.name}: {network.count_params():,} parameters, {trained:,} "
        f"trained, {run.config.model.num_classes} classes; multiply-adds an "
        f"image: {cost}"
    )


def _multiply_adds(run: runs.Run, image_size: int) -> int:
    rows = counting.count_stages(run.config.model.to_dict(), image_size)
    return counting.total(rows).multiply_adds


def train(run: runs.Run) -> Trainer:
    """Trains, or goes on with an interrupted run, up to the last step.

    `runs.set_up_runtime` must have been called before TensorFlow did anything.
    Leaves checkpoints, TensorBoard scalars and the curve in metrics.json.

    Returns:
        The trainer, with the weights of the last step.

    Raises:
        UserError: for data that cannot be had, a model_dir that cannot be
            written, or a loss that is not finite.
    """
    config = run.config
    distribution.check(run.strategy, config)
    left_out = faults.LeftOut(run.log)
    train_source = faults.load_split(
        config, config.train.split, left_out, run.log
    )
    validation_source = None
    if config.eval.val_split and run.is_chief:
        validation_source = faults.load_split(
            config, config.eval.val_split, left_out
        )
    fitting = Fitting(
        run, lambda: build_trainer(run), train_source, validation_source
    )
    run.log(describe_model(run, fitting.trainer))
    run.log(tables.align(stage_table(run)))
    with faults.named(*filter(None, (train_source, validation_source))):
        fitting.to_the_end()
    left_out.report()
    return fitting.trainer


def stage_table(run: runs.Run) -> list[tuple[str, ...]]:
    """Returns the stages of a run, see `progressive.table`."""
    return progressive.table(
        run.stages,
        run.plan.steps_per_epoch,
        run.config.data.augname,
        lambda step: schedules.weight_decay(run.config, run.plan, step),
        run.config.train.stage_order,
    )


def load_averaged(
    network: keras.Model, checkpoint: checkpoints.Checkpoint
) -> None:
    """Sets the averaged weights of a checkpoint, else the raw ones."""
    source = weights.from_arrays(checkpoint.arrays, str(checkpoint.path))
    weights.assign(network, source)


def evaluate_checkpoint(
    run: runs.Run, name: str | None, observe: Callable | None = None
) -> dict:
    """Evaluates the averaged weights of a checkpoint on `eval.split`.

    Args:
        run: of the checkpoint.
        name: see `checkpoints.find`.
        observe: called with each batch, see `evaluation.make_evaluator`.

    Returns:
        The metrics of `evaluation.make_evaluator`, with 'checkpoint', 'step',
        'dataset' and 'split'.
    """
    config = run.config
    checkpoint = checkpoints.load(checkpoints.find(run.model_dir, name))
    left_out = faults.LeftOut(run.log)
    source = faults.load_split(config, config.eval.split, left_out, run.log)
    source = sources.in_order_of(
        source, fingerprint.names_of_run(config, run.model_dir)
    )
    fingerprint.say_changes(config, run.model_dir, run.log)
    runs.set_up_runtime(config)
    network = architecture.build(config.model.to_dict())
    load_averaged(network, checkpoint)
    evaluate = evaluator(network, config)
    with faults.named(source):
        result = evaluate(pipeline.evaluation_dataset(source, config), observe)
    left_out.report()
    result |= {
        "checkpoint": checkpoint.path.name,
        "step": checkpoint.meta["step"],
        "dataset": config.data.ds_name,
        "split": config.eval.split,
    }
    run.log(
        f"{config.eval.split}: top-1 {result['top1']:.2%} top-5 "
        f"{result['top5']:.2%} ({result['images']:,} images, "
        f"{checkpoint.path.name}, step {result['step']:,})"
    )
    return result

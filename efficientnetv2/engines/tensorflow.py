"""The TensorFlow engine: CPU, GPU, several GPUs, several machines.

The step is one `tf.function`, traced once for images of any size.
"""

import gc
import itertools
from collections.abc import Callable, Mapping

import keras
import numpy as np
import tensorflow as tf

from efficientnetv2 import engines, progressive
from efficientnetv2.data import device
from efficientnetv2.engines import optimizers, strategies

set_up = strategies.set_up
is_chief = strategies.is_chief


class Engine(engines.BaseEngine):
    """The engine of `engines` on TensorFlow.

    The loss is cross-entropy plus L2, whose coefficient may ramp with the
    step. The moving average covers weights and batch-norm statistics.
    """

    def __init__(self, config, plan):
        super().__init__(config, plan)
        self.strategy = set_up(config, plan is not None)
        self.replicas = self.strategy.num_replicas_in_sync
        self.is_chief = is_chief(config)
        self.jit_compile = bool(config.runtime.jit_compile)
        # Parts are for the cores of a CPU; other devices are faster without.
        if strategies.on_cpu():
            self.parts = config.train.batch_parts
        self.augments = device.is_chosen(
            config, self.replicas == 1 and not strategies.on_cpu()
        )
        self.device = strategies.describe_devices(
            config, self.strategy, self.parts
        )
        self._logits_function = self._element_spec = self.averages = None
        with self.strategy.scope():
            self._build()
            if plan:
                strategies.check_replicas(self.strategy, config)
                self._build_averages()

    def _build_averages(self) -> None:
        first = tf.VariableAggregation.ONLY_FIRST_REPLICA
        self._step, self._first_bad = (
            tf.Variable(
                value, trainable=False, dtype=tf.int64, aggregation=first
            )
            for value in (0, -1)
        )
        if self.config.train.ema_decay:
            self.averages = [
                tf.Variable(weight.value, trainable=False)
                for weight in self.network.weights
            ]

    # --- State --------------------------------------------------------------

    def _state(self) -> dict[str, tf.Variable]:
        state = {"step": self._step}
        for group, variables in (
            ("network", self.network.variables),
            ("optimizer", self.optimizer.variables),
        ):
            for name, variable in engines.by_name(variables).items():
                state[f"{group}/{name}"] = variable.value
        names = engines.by_name(self.network.weights)
        for name, average in zip(names, self.averages or (), strict=False):
            state[f"ema/{name}"] = average
        return state

    def arrays(self) -> dict[str, np.ndarray]:
        """Returns a copy of all that a resumed run needs, by name."""
        return {name: var.numpy() for name, var in self._state().items()}

    def restore(self, arrays: Mapping[str, np.ndarray], source) -> None:
        """Sets the whole state, or leaves it unchanged if it does not fit."""
        variables = self._state()
        shapes = {name: var.shape for name, var in variables.items()}
        engines.check_shapes(shapes, arrays, source)
        for name, variable in variables.items():
            variable.assign(arrays[name])

    def reset_average(self) -> None:
        """Sets the moving average to the network's weights."""
        for average, weight in zip(
            self.averages or (), self.network.weights, strict=False
        ):
            average.assign(weight.value)

    def end_training(self) -> None:
        """Frees what only training needs; `logits` are the network's now."""
        self.optimizer = self.averages = None
        self._step_function = self._logits_function = None
        gc.collect()

    # --- The step -----------------------------------------------------------

    def dataset(self, make_dataset: Callable[..., tf.data.Dataset]):
        """Returns batches as `step` takes them."""
        dataset = strategies.distribute(self.strategy, make_dataset)
        self._element_spec = dataset.element_spec
        return dataset

    def step(self, batch, dropout_rate: float) -> dict[str, tf.Tensor]:
        """Makes an optimizer step; returns its metrics on the device."""
        if self._step_function is None:
            self._step_function = self._make_step(batch)
        batch = batch if self.augments else tuple(batch)
        return self._step_function(batch, tf.constant(dropout_rate, tf.float32))

    def first_bad_step(self) -> int | None:
        """Returns the first step whose loss was not finite, None if none was.

        Reads one number from the device.
        """
        step = int(self._first_bad.numpy())
        return None if step < 0 else step

    def _make_step(self, batch) -> Callable:
        # Images of all sizes share one trace.
        spec = self._element_spec or tuple(
            tf.TensorSpec(
                [rows, *[None] * (len(inner) - 1), *inner[-1:]], values.dtype
            )
            for values in batch
            for rows, *inner in [values.shape]
        )

        augment = tf.function(
            device.batch_maker(self.config), autograph=False, jit_compile=True
        )

        def step(batch, dropout_rate):
            if self.augments:
                batch = augment(batch)
            metrics = self.strategy.run(
                self.train_step, args=(*batch, dropout_rate)
            )
            # Which are the same on all replicas.
            return {
                name: self.strategy.experimental_local_results(value)[0]
                for name, value in metrics.items()
            }

        step = tf.function(
            step,
            input_signature=[spec, tf.TensorSpec([], tf.float32)],
            autograph=False,
            jit_compile=self.jit_compile or None,
        )
        if self.replicas == 1 and strategies.on_cpu() and not self.jit_compile:
            return strategies.without_graph_optimizer(step)
        return step

    def train_step(self, images, labels, dropout_rate):
        """The step of one replica, in a graph or eagerly; see `step`."""
        # Of several workers the dataset does not know the size of its batches.
        part = self.config.train.batch_size // self.replicas
        images = tf.ensure_shape(images, [part, None, None, 3])
        labels = tf.ensure_shape(labels, [part, self.config.model.num_classes])
        self.network.get_layer("head").dropout.rate_variable = dropout_rate
        step = tf.cast(self._step, tf.float32)
        variables = [variable.value for variable in self.trained]
        scale = getattr(self.optimizer, "dynamic_scale", None)
        scale = 1.0 if scale is None else tf.cast(scale, tf.float32)
        cross_entropy, logits, gradients = self._accumulate(
            images, labels, variables, scale
        )
        self.network.get_layer("head").dropout.rate_variable = None
        coefficient = progressive.weight_decay(self.config, self.plan, step)
        gradients, l2 = self._add_weight_decay(
            gradients, variables, coefficient, scale
        )
        gradients = self._clip(gradients, scale)
        # Keras adds up what the replicas give it.
        if self.replicas > 1:
            gradients = [gradient / self.replicas for gradient in gradients]
        self.optimizer.apply(gradients, self.trained)
        self._update_averages(step)
        top1, top5 = engines.hits(labels, logits)
        metrics = self._mean_of_replicas(
            {
                "loss": cross_entropy + l2,
                "cross_entropy": cross_entropy,
                "l2": l2,
                "top1": tf.reduce_mean(top1),
                "top5": tf.reduce_mean(top5),
            }
        )
        is_bad = (self._first_bad < 0) & ~tf.math.is_finite(metrics["loss"])
        self._first_bad.assign(tf.where(is_bad, self._step, self._first_bad))
        self._step.assign_add(1)
        return metrics

    def _mean_of_replicas(self, values):
        """Returns means over all replicas, in whatever structure."""
        if self.replicas == 1:
            return values
        return tf.distribute.get_replica_context().all_reduce(
            tf.distribute.ReduceOp.MEAN, values
        )

    def _accumulate(self, images, labels, variables, scale):
        """Returns the result of `_side_by_side`, one micro-batch at a time."""
        batch = images.shape[0]
        size = min(self.micro_batch_size or batch, batch)
        count = batch // size
        if count == 1:
            return self._side_by_side(images, labels, variables, scale)

        def add(index, cross_entropy, logits, gradients):
            rows = slice(index * size, (index + 1) * size)
            part = [
                tf.ensure_shape(values[rows], [size, *values.shape[1:]])
                for values in (images, labels)
            ]
            more = self._side_by_side(*part, variables, scale)
            pairs = zip(gradients, more[2], strict=True)
            return (
                index + 1,
                cross_entropy + more[0] / count,
                logits.write(index, tf.cast(more[1], tf.float32)),
                [gradient + addend / count for gradient, addend in pairs],
            )

        shape = [size, labels.shape[1]]
        start = (
            0,
            tf.zeros([]),
            tf.TensorArray(tf.float32, count, element_shape=shape),
            [tf.zeros_like(variable) for variable in variables],
        )
        _, cross_entropy, logits, gradients = tf.while_loop(
            lambda index, *_: index < count, add, start, parallel_iterations=1
        )
        return cross_entropy, logits.concat(), gradients

    def _side_by_side(self, images, labels, variables, scale):
        """Returns cross-entropy, logits and gradients of images.

        On a CPU the parts of a batch are computed at the same time.
        """
        count = self.parts
        if count == 1:
            return self._part_step(images, labels, variables, scale)
        parts = list(
            zip(tf.split(images, count), tf.split(labels, count), strict=True)
        )
        scale /= count
        if self.replicas == 1 and tf.inside_function():
            results = self._call_on_parts(parts, variables, scale)
        else:
            results = [self._part_step(*p, variables, scale) for p in parts]
        cross_entropy = tf.add_n([r[0] for r in results]) / count
        logits = tf.concat([r[1] for r in results], 0)
        gradients = [
            tf.add_n(of_parts)
            for of_parts in zip(*[r[2] for r in results], strict=True)
        ]
        return cross_entropy, logits, gradients

    def _call_on_parts(self, parts, variables, scale):
        """Calls `_part_step` on each part, with one copy of it in the graph.

        Copies would double the time to the first step. What the layers write
        would make one call wait for the other, so it is written afterwards, as
        if the parts had run in turn.
        """
        written = self.network.non_trainable_variables

        @tf.function(
            autograph=False, experimental_attributes={"_noinline": True}
        )
        def step(images, labels, scale, *values):
            mapping = list(zip(written, values, strict=True))
            with keras.StatelessScope(mapping) as scope:
                results = self._part_step(images, labels, variables, scale)
            return results, [scope.get_current_value(v) for v in written]

        before = [tf.convert_to_tensor(each.value) for each in written]
        seeds = [value.dtype.is_integer for value in before]
        answers = [
            step(
                *part,
                scale,
                *(
                    # Each layer draws once: a seed is [key, counter].
                    value + tf.constant([0, index], value.dtype)
                    if is_seed
                    else value
                    for value, is_seed in zip(before, seeds, strict=True)
                ),
            )
            for index, part in enumerate(parts)
        ]
        momentum = tf.constant(self.config.model.bn_momentum, tf.float32)
        for variable, old, is_seed, *new in zip(
            written, before, seeds, *(a[1] for a in answers), strict=True
        ):
            value = new[0]
            for other in new[1:]:
                # new = momentum * old + (1 - momentum) * statistics.
                value = other if is_seed else other + momentum * (value - old)
            variable.assign(value)
        return [results for results, _ in answers]

    def _part_step(self, images, labels, variables, scale):
        """Returns cross-entropy, logits and gradients of a part of a batch.

        The gradients are those of `scale` times the cross-entropy.
        """
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch(variables)
            logits = self.network(images, training=True)
            cross_entropy = engines.cross_entropy(
                labels,
                logits,
                self.config.train.loss_type,
                self.config.train.label_smoothing,
                self.class_weights,
            )
            loss = cross_entropy * scale
        return cross_entropy, logits, tape.gradient(loss, variables)

    def _add_weight_decay(self, gradients, variables, coefficient, scale):
        """Adds the gradient of coefficient / 2 * |w|^2 and returns the loss.

        By hand rather than by the tape, which would add four operations per
        variable for the same numbers.
        """
        added, squares = [], []
        factor = coefficient * scale
        rows = zip(gradients, variables, self._decayed, strict=True)
        for gradient, variable, decayed in rows:
            if decayed:
                value = tf.convert_to_tensor(variable)
                gradient += factor * value
                squares.append(tf.nn.l2_loss(value))
            added.append(gradient)
        return added, coefficient * tf.add_n(squares) if squares else 0.0

    def _clip(self, gradients, scale):
        """Clips the norm of each gradient, then the global norm."""
        norm = self.config.train.gclip * scale
        if not self.config.train.gclip:
            return gradients
        gradients = self._mean_of_replicas(gradients)
        gradients = [tf.clip_by_norm(gradient, norm) for gradient in gradients]
        return tf.clip_by_global_norm(gradients, norm)[0]

    def _update_averages(self, step):
        if self.averages is None:
            return
        part = 1.0 - optimizers.ema_decay(self.config, step)
        pairs = zip(self.averages, self.network.weights, strict=True)
        for average, weight in pairs:
            # average -= part * (average - weight). Raw operations take less
            # time to trace. One buffer for all variables, and an update by
            # XLA, were measured on a CPU: they are slower.
            old, new = (
                tf.raw_ops.ReadVariableOp(
                    resource=each.handle, dtype=each.dtype
                )
                for each in (average, weight.value)
            )
            tf.raw_ops.ResourceApplyGradientDescent(
                var=average.handle,
                alpha=part,
                delta=tf.raw_ops.Sub(x=old, y=new),
            )

    # --- Inference ----------------------------------------------------------

    def logits(self, images: np.ndarray) -> np.ndarray:
        """Returns the logits of the averaged weights, for any batch."""
        if self._logits_function is None:
            self._logits_function = self._make_logits()
        # A convolution of no image at all has a wrong shape in TensorFlow.
        rows, short = len(images), max(0, self.parts - len(images))
        if short:
            images = np.pad(images, [(0, short), (0, 0), (0, 0), (0, 0)])
        return self._logits_function(images).numpy()[:rows]

    def _make_logits(self) -> Callable:
        @tf.function(
            input_signature=[tf.TensorSpec([None, None, None, 3])],
            autograph=False,
            jit_compile=self.jit_compile or None,
        )
        def logits(images):
            size = tf.shape(images)[0]
            cuts = [size * k // self.parts for k in range(self.parts + 1)]
            mapping = []
            if self.averages is not None:
                averages = map(tf.convert_to_tensor, self.averages)
                mapping = zip(self.network.weights, averages, strict=True)
            with keras.StatelessScope(list(mapping)):
                parts = [
                    self.network(images[first:last], training=False)
                    for first, last in itertools.pairwise(cuts)
                ]
            return tf.cast(tf.concat(parts, 0), tf.float32)

        return logits

    # --- Errors -------------------------------------------------------------

    @staticmethod
    def is_out_of_memory(error: Exception) -> bool:
        """Whether an error says that a device is out of memory."""
        return isinstance(error, tf.errors.ResourceExhaustedError)

    @staticmethod
    def is_lost_worker(error: Exception) -> bool:
        """Whether an error says that another machine is gone."""
        return isinstance(
            error, tf.errors.OpError
        ) and "Collective ops is aborted" in str(error)

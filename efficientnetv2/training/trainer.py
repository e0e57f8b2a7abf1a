"""The training step as a Keras model, and the state that a run carries."""

import re
from collections.abc import Callable, Mapping

import keras
import ml_collections
import numpy as np
import tensorflow as tf

from efficientnetv2.config import RunPlan
from efficientnetv2.training import losses, schedules
from efficientnetv2.training.checkpoints import CheckpointError


class Trainer(keras.Model):
    """Trains a network by `fit`, and keeps its moving average.

    The loss is cross-entropy (see `losses`) plus L2, whose coefficient may
    ramp with the step. The moving average of the weights and
    of the batch-norm statistics lives in a second network of the same
    architecture, which evaluation and export use as it is.

    Args:
        network: from images to logits.
        ema_network: its copy; `network` itself for no moving average.
        config: of the run.
        plan: of the run.
        augment: makes a batch on the device, see `device.finish`; None if the
            pipeline does.

    Attributes:
        micro_batch_size: images whose gradients a replica computes at once;
            0: all that it has of a batch. Must be set before the first step.
        seconds: spent in `fit` waiting for batches, and on them.
    """

    def __init__(
        self,
        network: keras.Model,
        ema_network: keras.Model,
        config: ml_collections.ConfigDict,
        plan: RunPlan,
        augment: Callable | None = None,
    ):
        super().__init__(name="trainer")
        self.network = network
        self.ema_network = ema_network
        self.config = config
        self.plan = plan
        self.micro_batch_size = config.train.micro_batch_size
        self.augment = augment
        first = tf.VariableAggregation.ONLY_FIRST_REPLICA
        self.step = tf.Variable(
            0, trainable=False, dtype=tf.int64, name="step", aggregation=first
        )
        with tf.device("CPU"):
            # Spent in `fit`: waiting for batches, and on them.
            self.seconds = tf.Variable(
                [0.0, 0.0],
                trainable=False,
                dtype=tf.float64,
                aggregation=first,
            )
        self.trained = _select(
            network.trainable_variables, config.train.varsexp
        )
        excluded = re.compile(config.train.weight_decay_exclude)
        self.decayed = [
            not excluded.match(variable.path) for variable in self.trained
        ]
        self.trackers = {
            name: keras.metrics.Mean(name=name)
            for name in ("loss", "cross_entropy", "l2", "top1", "top5")
        }
        self.built = True

    def call(self, images, training=False):
        return self.network(images, training=training)

    @property
    def metrics(self):
        return list(self.trackers.values())

    def _maybe_symbolic_build(self, iterator=None, data_batch=None):
        """Does nothing: there is nothing left to build.

        Keras would average a batch over all replicas for it, which it cannot
        do over several machines.
        """

    def make_train_function(self, force=False):
        """Makes the step of `fit`, which adds to `seconds`.

        The clock is read within the graph, so that Python's part, in which
        the pipeline goes on, is no waiting. Batches are augmented here,
        too, where the pipeline does not.
        """
        if self.train_function is not None and not force:
            return
        super().make_train_function(force)
        step_on_batches = self.train_function

        def timed_step(iterator):
            start = tf.timestamp()
            with tf.control_dependencies([start]):
                batch = iterator.get_next()
            with tf.control_dependencies(tf.nest.flatten(batch, True)):
                ready = tf.timestamp()
            with tf.control_dependencies([ready]):
                batch = tf.nest.map_structure(
                    tf.identity, batch, expand_composites=True
                )
            if self.augment is not None:
                batch = self.augment(batch)
            logs = step_on_batches([batch])
            with tf.device("CPU"):
                # Their copies exist when an accelerator is done with them.
                copies = [tf.identity(value) for value in logs.values()]
            with tf.control_dependencies(copies):
                end = tf.timestamp()
            self.seconds.assign_add([ready - start, end - ready])
            return logs

        if not self.run_eagerly:
            timed_step = tf.function(
                timed_step, autograph=False, reduce_retracing=True
            )
        self.train_function = timed_step

    def train_step(self, data):
        images, labels = data
        step = tf.cast(self.step, tf.float32)
        variables = [variable.value for variable in self.trained]
        scale = getattr(self.optimizer, "dynamic_scale", None)
        scale = 1.0 if scale is None else tf.cast(scale, tf.float32)
        cross_entropy, logits, gradients = self._accumulate(
            images, labels, variables, scale
        )
        coefficient = schedules.weight_decay(self.config, self.plan, step)
        gradients, l2 = self._add_weight_decay(
            gradients, variables, coefficient, scale
        )
        gradients = self._clip(gradients, scale)
        # Keras adds up what the replicas give it.
        replicas = self.distribute_strategy.num_replicas_in_sync
        if replicas > 1:
            gradients = [gradient / replicas for gradient in gradients]
        self.optimizer.apply(gradients, self.trained)
        self._update_ema(step)
        self.step.assign_add(1)
        top1, top5 = losses.hits(labels, logits)
        values = {
            "loss": cross_entropy + l2,
            "cross_entropy": cross_entropy,
            "l2": l2,
            "top1": tf.reduce_mean(top1),
            "top5": tf.reduce_mean(top5),
        }
        return self._track(**self._mean_of_replicas(values))

    def _mean_of_replicas(self, values):
        """Returns means over all replicas, in whatever structure."""
        if self.distribute_strategy.num_replicas_in_sync == 1:
            return values
        return tf.distribute.get_replica_context().all_reduce(
            tf.distribute.ReduceOp.MEAN, values
        )

    def _accumulate(self, images, labels, variables, scale):
        """Returns what `_side_by_side` does, of one micro-batch at a time."""
        batch = images.shape[0]
        size = min(self.micro_batch_size or batch, batch)
        count = batch // size
        if count == 1:
            return self._side_by_side(images, labels, variables, scale)

        def add(index, cross_entropy, logits, gradients):
            part = [
                tf.ensure_shape(
                    values[index * size : (index + 1) * size],
                    [size, *values.shape[1:]],
                )
                for values in (images, labels)
            ]
            more = self._side_by_side(*part, variables, scale)
            return (
                index + 1,
                cross_entropy + more[0] / count,
                logits.write(index, tf.cast(more[1], tf.float32)),
                [
                    gradient + addend / count
                    for gradient, addend in zip(gradients, more[2], strict=True)
                ],
            )

        _, cross_entropy, logits, gradients = tf.while_loop(
            lambda index, *_: index < count,
            add,
            (
                0,
                tf.zeros([]),
                tf.TensorArray(
                    tf.float32, count, element_shape=[size, labels.shape[1]]
                ),
                [tf.zeros_like(variable) for variable in variables],
            ),
            parallel_iterations=1,
        )
        return cross_entropy, logits.concat(), gradients

    def _side_by_side(self, images, labels, variables, scale):
        """Returns cross-entropy, logits and gradients of images.

        On a CPU the parts of a batch are computed at the same time.
        """
        count = self.config.train.batch_parts
        parts = list(
            zip(tf.split(images, count), tf.split(labels, count), strict=True)
        )
        one_replica = self.distribute_strategy.num_replicas_in_sync == 1
        if count > 1 and one_replica and tf.inside_function():
            results = self._call_on_parts(parts, variables, scale / count)
        else:
            results = [
                self._part_step(*part, variables, scale / count)
                for part in parts
            ]
        cross_entropy = tf.add_n([r[0] for r in results]) / count
        logits = tf.concat([r[1] for r in results], 0)
        gradients = [
            tf.add_n(of_parts) if count > 1 else of_parts[0]
            for of_parts in zip(*[r[2] for r in results], strict=True)
        ]
        return cross_entropy, logits, gradients

    def _call_on_parts(self, parts, variables, scale):
        """Returns `_part_step` of each part, of which the graph has one copy.

        Copies would double the time to the first step. What the layers write,
        which would make one call wait for the other, is written afterwards,
        as if the parts had come in turn.
        """
        state = self.network.non_trainable_variables

        @tf.function(
            autograph=False, experimental_attributes={"_noinline": True}
        )
        def step(images, labels, scale, *values):
            mapping = list(zip(state, values, strict=True))
            with keras.StatelessScope(mapping) as scope:
                results = self._part_step(images, labels, variables, scale)
            written = [scope.get_current_value(each) for each in state]
            return results, written

        before = [tf.convert_to_tensor(each.value) for each in state]
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
        momentum = self.config.model.bn_momentum
        for variable, old, is_seed, *new in zip(
            state, before, seeds, *(a[1] for a in answers), strict=True
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
            cross_entropy = losses.cross_entropy(
                labels,
                logits,
                self.config.train.loss_type,
                self.config.train.label_smoothing,
            )
            loss = cross_entropy * scale
        return cross_entropy, logits, tape.gradient(loss, variables)

    def _add_weight_decay(self, gradients, variables, coefficient, scale):
        """Adds the gradient of coefficient / 2 * |w|^2 and returns the loss.

        By hand rather than by the tape, which would add four operations a
        variable for the same numbers.
        """
        added, squares = [], []
        for gradient, variable, decayed in zip(
            gradients, variables, self.decayed, strict=True
        ):
            if decayed:
                value = tf.convert_to_tensor(variable)
                gradient += (coefficient * scale) * value
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

    def _update_ema(self, step):
        if self.ema_network is self.network:
            return
        part = 1.0 - schedules.ema_decay(self.config, step)
        for average, variable in zip(
            self.ema_network.weights, self.network.weights, strict=True
        ):
            average, variable = average.value, variable.value
            # average -= part * (average - variable), in one kernel.
            tf.raw_ops.ResourceApplyGradientDescent(
                var=average.handle, alpha=part, delta=average - variable
            )

    def _track(self, **values):
        for name, value in values.items():
            self.trackers[name].update_state(value)
        results = {name: each.result() for name, each in self.trackers.items()}
        if isinstance(
            self.distribute_strategy, tf.distribute.MultiWorkerMirroredStrategy
        ):
            # Over which Keras takes the mean of the first axis.
            results = {name: each[None] for name, each in results.items()}
        return results

    def state(self) -> dict[str, tf.Variable]:
        """Returns all that a resumed run needs, by name."""
        state = {"step": self.step}
        groups = {
            "network": self.network.variables,
            "optimizer": self.optimizer.variables,
        }
        if self.ema_network is not self.network:
            groups["ema"] = self.ema_network.weights
        for group, variables in groups.items():
            for name, variable in named_variables(variables).items():
                state[f"{group}/{name}"] = variable
        return state

    def state_arrays(self) -> dict[str, np.ndarray]:
        """Returns a copy of the state as arrays."""
        return {name: var.numpy() for name, var in self.state().items()}

    def restore(self, arrays: Mapping[str, np.ndarray], source) -> None:
        """Sets the whole state.

        Raises:
            CheckpointError: if a variable is missing or of another shape; the
                state is then left as it was.
        """
        assign_all(self.state(), arrays, source)


def waiting_share(seconds: np.ndarray) -> float:
    """Returns the share of the time that was spent waiting, 0 for no time.

    Args:
        seconds: `Trainer.seconds`, or a difference of two readings.
    """
    waiting, computing = (float(value) for value in seconds)
    return waiting / max(waiting + computing, 1e-9)


def _select(variables, pattern: str | None) -> list:
    if not pattern:
        return list(variables)
    chosen = [v for v in variables if re.match(pattern, v.path)]
    if not chosen:
        raise CheckpointError(
            f"train.varsexp={pattern!r} matches no trainable variable; the "
            f"first is called {variables[0].path!r}."
        )
    return chosen


def named_variables(variables) -> dict[str, tf.Variable]:
    """Returns variables by names that are the same in every process.

    Keras numbers seed generators over the life of a process; here they are
    numbered in the order of the layers.
    """
    named = {}
    for variable in variables:
        name = variable.path
        if "seed_generator" in name:
            count = sum(other.startswith("seed_generator") for other in named)
            name = f"seed_generator_{count}"
        if name in named:
            raise ValueError(f"Two variables are called {name!r}.")
        named[name] = variable.value
    return named


def assign_all(
    variables: Mapping[str, tf.Variable],
    arrays: Mapping[str, np.ndarray],
    source,
) -> None:
    """Assigns arrays to variables by name: all of them, or none.

    Raises:
        CheckpointError: names the file, the variable and both shapes.
    """
    for name, variable in variables.items():
        if name not in arrays:
            raise CheckpointError(f"{source} has no variable {name!r}.")
        if tuple(variable.shape) != arrays[name].shape:
            raise CheckpointError(
                f"{source}: {name!r} has the shape {arrays[name].shape}, the "
                f"model needs {tuple(variable.shape)}."
            )
    for name, variable in variables.items():
        variable.assign(arrays[name])

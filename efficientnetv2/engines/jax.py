"""Training on JAX: on TPUs and GPUs, and on a CPU to try it.

An optimizer step is one pure function from a state and a batch to the next
state. It is compiled once per image size, and the state that goes in gives its
memory to the one that comes out. Several devices share a global batch: XLA
splits the work along the batch and adds what has to be added, the statistics
of batch normalization included, so that the numbers are those of one device.

TensorFlow is not imported; the batches come from tf.data, which the caller
makes.
"""

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence

import jax
import jax.numpy as jnp
import keras
import ml_collections
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from efficientnetv2 import progressive
from efficientnetv2.data import device as augmentation
from efficientnetv2.engines import (
    jax_devices,
    losses,
    optimizers,
    schedules,
)
from efficientnetv2.engines import state as names_of
from efficientnetv2.models import architecture
from efficientnetv2.progressive import RunPlan

set_up = jax_devices.set_up
is_chief = jax_devices.is_chief


class Engine:
    """Network, optimizer and moving average of a run, and its steps.

    The state on the devices is what counts; the variables of Keras give it
    names, shapes and initial values.

    Args:
        config: of the run.
        plan: of the run.
        log: prints one line.
        training: see `engines.create`.

    Attributes:
        trained: the variables that the optimizer changes.
        replicas: devices that share a global batch.
        device: what computes and how, for people.
        augments: whether `step` takes crops, see `device.is_chosen`.
        parts: of a batch that are computed side by side: 1.
        is_chief: whether this process writes the run's files: it does.

    Raises:
        StrategyError: if there is no such device, the batch cannot be split
            over all of them, or an option is for TensorFlow only.
        CheckpointError: if `train.varsexp` matches nothing.
    """

    parts = 1
    is_chief = True

    def __init__(
        self,
        config: ml_collections.ConfigDict,
        plan: RunPlan,
        log: Callable[[str], None] = print,
        training: bool = True,
    ):
        self.class_weights = None
        self.config, self.plan = config, plan
        self._devices = set_up(config, training)
        self.replicas = len(self._devices)
        jax_devices.check(config, self.replicas)
        self.augments = augmentation.is_chosen(
            config, self._devices[0].platform != "cpu"
        )
        self.device = jax_devices.describe(self._devices)
        self._everywhere, self._split = jax_devices.shardings(self._mesh())
        self._micro_batch_size = config.train.micro_batch_size
        self._state = self._step = self._infer = self._running = None
        self._rows: dict[tuple[int, ...], int] = {}
        self._network = architecture.build(config.model.to_dict())
        self.trained = names_of.select(self._network, config.train.varsexp)
        self._variables = {"network": names_of.named(self._network.variables)}
        if training:
            self._optimizer = optimizers.build_optimizer(
                config, schedules.learning_rate(config, plan)
            )
            self._optimizer.build(self.trained)
            self._variables["optimizer"] = names_of.named(
                self._optimizer.variables
            )
        self._names = self._find_names(training)
        if training:
            self.reset_average()

    def _find_names(self, training: bool) -> dict[str, list[str]]:
        """Returns the names of variables by what they are for."""
        network, config = self._network, self.config.train
        roles = {
            "trained": self.trained,
            "others": network.non_trainable_variables,
        }
        if training:
            scale = getattr(self._optimizer, "dynamic_scale", None)
            decayed = names_of.decayed(
                self.trained, config.weight_decay_exclude
            )
            roles |= {
                "decayed": [
                    variable
                    for variable, is_decayed in zip(
                        self.trained, decayed, strict=True
                    )
                    if is_decayed
                ],
                "averaged": network.weights if config.ema_decay else [],
                "optimizer": self._optimizer.variables,
                "scale": [] if scale is None else [scale],
            }
        name_of = {
            id(variable): name
            for group in self._variables.values()
            for name, variable in group.items()
        }
        return {
            role: [name_of[id(variable)] for variable in variables]
            for role, variables in roles.items()
        }

    # ---- The state -------------------------------------------------------

    @property
    def network(self) -> keras.Model:
        """From images to logits, with the raw weights of this moment.

        A step takes their memory: ask again after it. To train from weights
        that are set here, call `reset_average`.
        """
        if self._state is not None and self._has_moved:
            self._has_moved = False
            for group, variables in self._variables.items():
                for name, variable in variables.items():
                    variable.assign(self._state[group][name])
        return self._network

    def reset_average(self) -> None:
        """Begins at step 0, with the weights of `network`."""
        groups = {
            group: {name: np.array(v.value) for name, v in variables.items()}
            for group, variables in self._variables.items()
        }
        groups["ema"] = {
            name: groups["network"][name] for name in self._names["averaged"]
        }
        self._set_state(0, groups)

    def _set_state(self, step: int, groups: dict) -> None:
        state = {"step": np.int32(step), "first_bad": np.int32(-1), **groups}
        self._running = None
        self._state = jax.device_put(state, self._everywhere)
        # So that Keras holds no second copy.
        self._has_moved = True
        _ = self.network

    def _shapes(self) -> dict[str, tuple[int, ...]]:
        shapes = {"step": ()}
        for group, members in self._variables.items():
            for name, variable in members.items():
                shapes[f"{group}/{name}"] = tuple(variable.shape)
        for name in self._names["averaged"]:
            shapes[f"ema/{name}"] = shapes[f"network/{name}"]
        return shapes

    def restore(self, arrays: Mapping[str, np.ndarray], source) -> None:
        """Sets the whole state.

        Raises:
            CheckpointError: if a variable is missing or of another shape; the
                state is then left as it was.
        """
        names_of.check(self._shapes(), arrays, source)
        groups = {
            group: {
                name: np.array(arrays[f"{group}/{name}"], variable.dtype)
                for name, variable in members.items()
            }
            for group, members in self._variables.items()
        }
        groups["ema"] = {
            name: np.array(arrays[f"ema/{name}"], groups["network"][name].dtype)
            for name in self._names["averaged"]
        }
        self._set_state(int(arrays["step"]), groups)

    def arrays(self) -> dict[str, np.ndarray]:
        """Returns a copy of the state, by the names of every backend."""
        state = jax.device_get(self._state)
        arrays = {"step": np.array(state["step"], np.int64)}
        for group in ("network", "optimizer", "ema"):
            for name, array in state[group].items():
                is_integer = np.issubdtype(array.dtype, np.integer)
                # Counters and seeds have the type that TensorFlow gives them.
                arrays[f"{group}/{name}"] = np.array(
                    array, np.int64 if is_integer else array.dtype
                )
        return arrays

    def first_bad_step(self) -> int | None:
        """Returns the first step whose loss was not finite, None if none.

        That step and the ones after it left the state as it was.
        """
        step = int(self._state["first_bad"])
        return None if step < 0 else step

    def end_training(self) -> None:
        """Frees what only training needs; `logits` are the network's now."""
        network = self.network
        self._state = self._step = self._running = None
        del self._variables["optimizer"], self._optimizer
        for variable in network.variables:
            # Its own memory, for as long as it lives.
            variable.assign(np.array(variable.value))

    # ---- A step ----------------------------------------------------------

    @property
    def micro_batch_size(self) -> int:
        """Images whose gradients a device computes at once; 0: all it has."""
        return self._micro_batch_size

    @micro_batch_size.setter
    def micro_batch_size(self, size: int) -> None:
        self._micro_batch_size, self._step = size, None

    def dataset(self, make_dataset: Callable) -> Iterator[tuple]:
        """Yields batches on the devices.

        A batch is on its way to the devices while the step before is still
        running there: `step` does not wait for its end.

        Args:
            make_dataset: from the number of this worker and that of all to a
                tf.data.Dataset, see `pipeline.training_dataset`.
        """
        for batch in make_dataset(0, 1).as_numpy_iterator():
            yield jax.device_put(batch, self._split)

    def step(self, batch, dropout_rate: float) -> dict[str, jax.Array]:
        """Makes an optimizer step.

        Args:
            batch: of `dataset`: images, float32 [batch, size, size, 3], and
                labels, float32 [batch, classes]; or what `device.finish` makes
                them from.
            dropout_rate: before the classifier, in [0, 1).

        Returns:
            'loss', 'cross_entropy', 'l2', 'top1' and 'top5' as scalars on the
            device.
        """
        if self._step is None:
            self._step = self.step_function()
        self._has_moved = True
        self._state, metrics = self._step(
            self._state, batch, np.float32(dropout_rate)
        )
        # One step may wait behind the one that is running. More would only
        # hold batches in the device's memory.
        jax.block_until_ready(self._running)
        self._running = metrics
        return metrics

    def step_function(self, devices: Sequence | None = None):
        """Returns the compiled step, as `step` calls it.

        Args:
            devices: to compile for, which may be those of another machine; by
                default the engine's.

        Returns:
            A jitted function from (state, batch, dropout rate) to (state,
            metrics), to be called, lowered or exported; `step_arguments` says
            of what shapes.
        """
        mesh = self._mesh(devices)
        everywhere, split = jax_devices.shardings(mesh)
        finish = tuple
        if self.augments:
            finish = augmentation.batch_maker(self.config)
        return jax.jit(
            functools.partial(self._next, mesh, finish, self._micro_batch_size),
            donate_argnums=0,
            in_shardings=(everywhere, split, everywhere),
            out_shardings=everywhere,
        )

    def step_arguments(self, image_size: int, batch=None) -> tuple:
        """Returns shapes and types of the arguments of `step_function`.

        Args:
            image_size: of a stage, in pixels.
            batch: shapes and types of a batch where it is not images and
                labels, see `step`; None: it is.
        """
        if batch is None:
            size = self.config.train.batch_size
            shapes = (
                (size, image_size, image_size, 3),
                (size, self.config.model.num_classes),
            )
            batch = [jax.ShapeDtypeStruct(each, jnp.float32) for each in shapes]
        state = jax.tree.map(
            lambda each: jax.ShapeDtypeStruct(each.shape, each.dtype),
            self._state,
        )
        return state, batch, jax.ShapeDtypeStruct((), jnp.float32)

    def _mesh(self, devices=None) -> Mesh:
        return Mesh(np.array(devices or self._devices), (jax_devices.BATCH,))

    def _next(self, mesh, finish, micro_batch_size, state, batch, rate):
        """Returns the state after a step, and its metrics."""
        images, labels = finish(batch)
        config, names = self.config, self._names
        step = state["step"].astype(jnp.float32)
        scale = 1.0
        for name in names["scale"]:
            scale = state["optimizer"][name].astype(jnp.float32)
        cross_entropy, hits, gradients, network = self._accumulate(
            mesh,
            micro_batch_size,
            state["network"],
            images,
            labels,
            rate,
            scale,
        )
        coefficient = progressive.weight_decay(config, self.plan, step)
        squares = 0.0
        for name in names["decayed"]:
            value = network[name]
            gradients[name] += (coefficient * scale) * value
            squares += 0.5 * jnp.sum(jnp.square(value))
        l2 = coefficient * squares
        gradients = _clip(gradients, config.train.gclip, scale)
        trained, optimizer = self._optimizer.stateless_apply(
            [state["optimizer"][name] for name in names["optimizer"]],
            [gradients[name] for name in names["trained"]],
            [network[name] for name in names["trained"]],
        )
        network |= zip(names["trained"], trained, strict=True)
        part = 1.0 - schedules.ema_decay(config, step)
        ema = {
            name: average - part * (average - network[name])
            for name, average in state["ema"].items()
        }
        loss = cross_entropy + l2
        is_finite = jnp.isfinite(loss)
        first_bad = jnp.where(
            (state["first_bad"] < 0) & ~is_finite,
            state["step"],
            state["first_bad"],
        )
        after = {
            "step": state["step"] + 1,
            "network": network,
            "optimizer": dict(zip(names["optimizer"], optimizer, strict=True)),
            "ema": ema,
        }
        before = {name: state[name] for name in after}
        state = jax.tree.map(
            functools.partial(jnp.where, first_bad < 0), after, before
        )
        metrics = {"loss": loss, "cross_entropy": cross_entropy, "l2": l2}
        metrics |= {"top1": jnp.mean(hits[0]), "top5": jnp.mean(hits[1])}
        return {**state, "first_bad": first_bad}, metrics

    def _accumulate(self, mesh, micro, network, images, labels, rate, scale):
        """Returns what `_gradients` does, of one micro-batch after another.

        Each has its images from all devices, of each what lies there.
        """
        replicas = mesh.size
        part = images.shape[0] // replicas
        size = min(micro or part, part)
        count = part // size
        if count == 1:
            return self._gradients(network, images, labels, rate, scale)
        sharding = NamedSharding(mesh, PartitionSpec(None, jax_devices.BATCH))

        def cut(values):
            values = values.reshape(replicas, count, size, *values.shape[1:])
            values = values.swapaxes(0, 1)
            values = values.reshape(count, replicas * size, *values.shape[3:])
            return jax.lax.with_sharding_constraint(values, sharding)

        def add(carry, batch):
            cross_entropy, gradients, network = carry
            more, hits, addends, network = self._gradients(
                network, *batch, rate, scale
            )
            cross_entropy += more / count
            gradients = {
                name: gradient + addends[name] / count
                for name, gradient in gradients.items()
            }
            return (cross_entropy, gradients, network), hits

        zeros = {
            name: jnp.zeros_like(network[name])
            for name in self._names["trained"]
        }
        (cross_entropy, gradients, network), hits = jax.lax.scan(
            add, (jnp.float32(0), zeros, network), (cut(images), cut(labels))
        )
        return cross_entropy, hits, gradients, network

    def _gradients(self, network, images, labels, rate, scale):
        """Returns cross-entropy, hits, gradients and the network's new state.

        The gradients are those of `scale` times the cross-entropy.
        """
        train = self.config.train

        def loss(trained):
            logits, changed = self._call(
                {**network, **trained}, images, training=True, rate=rate
            )
            cross_entropy = losses.cross_entropy(
                labels,
                logits,
                train.loss_type,
                train.label_smoothing,
                self.class_weights,
            )
            return cross_entropy * scale, (cross_entropy, logits, changed)

        trained = {name: network[name] for name in self._names["trained"]}
        gradients, (cross_entropy, logits, changed) = jax.grad(
            loss, has_aux=True
        )(trained)
        hits = losses.hits(labels, logits)
        return cross_entropy, hits, gradients, {**network, **changed}

    def _call(self, values, images, training, rate=None):
        """Returns logits, and what the layers changed."""
        dropout = self._network.get_layer("head").dropout
        # Of this trace: a stage has its own rate.
        dropout.rate_variable = rate
        try:
            logits, others = self._network.stateless_call(
                [values[name] for name in self._names["trained"]],
                [values[name] for name in self._names["others"]],
                images,
                training=training,
            )
        finally:
            dropout.rate_variable = None
        return logits, dict(zip(self._names["others"], others, strict=True))

    # ---- Evaluation ------------------------------------------------------

    def logits(self, images) -> np.ndarray:
        """Returns what the averaged weights say, else the raw ones.

        Args:
            images: float32 [batch, size, size, 3]. A batch that is smaller
                than one before is filled up, so that nothing is compiled
                anew.

        Returns:
            float32 [batch, classes].
        """
        images = np.asarray(images)
        rows, shape = len(images), images.shape[1:]
        most = max(rows, self._rows.get(shape, 0))
        most = self._rows[shape] = -(-most // self.replicas) * self.replicas
        padding = [(0, most - rows)] + [(0, 0)] * len(shape)
        if self._state is None:
            values = {
                name: variable.value
                for name, variable in self._variables["network"].items()
            }
        else:
            values = {**self._state["network"], **self._state["ema"]}
        if self._infer is None:
            self._infer = jax.jit(
                lambda *arguments: self._call(*arguments, training=False)[0],
                in_shardings=(self._everywhere, self._split),
                out_shardings=self._split,
            )
        logits = self._infer(values, np.pad(images, padding))
        return np.array(logits, np.float32)[:rows]

    # ---- Errors ----------------------------------------------------------

    @staticmethod
    def is_out_of_memory(error: BaseException) -> bool:
        """Whether an error says that a device has too little memory."""
        return isinstance(
            error, jax.errors.JaxRuntimeError
        ) and "RESOURCE_EXHAUSTED" in str(error)

    @staticmethod
    def is_lost_worker(error: BaseException) -> bool:
        """Whether an error says that another machine is gone: there is none."""
        return False


def _clip(gradients: dict, norm: float, scale) -> dict:
    """Clips the norm of each gradient, then the global norm; 0: neither."""
    if not norm:
        return gradients
    limit = norm * scale
    squares = {n: jnp.sum(jnp.square(g)) for n, g in gradients.items()}
    factors = {
        name: limit / jnp.maximum(jnp.sqrt(square), limit)
        for name, square in squares.items()
    }
    total = jnp.sqrt(
        sum(squares[name] * factors[name] ** 2 for name in gradients)
    )
    factor = limit / jnp.maximum(total, limit)
    return {
        name: gradient * (factors[name] * factor)
        for name, gradient in gradients.items()
    }

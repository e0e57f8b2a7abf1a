"""Training on JAX: on TPUs and GPUs, and on a CPU to try it.

An optimizer step is one pure function from a state and a batch to the next
state. It is compiled once per image size, and donates the memory of the old
state to the new one. Several devices share a global batch: XLA splits the work
along the batch and sums over devices where needed, for batch-norm statistics
too, so that the numbers are those of one device.

TensorFlow is not imported; the batches come from tf.data, which the caller
makes.
"""

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence

import jax
import jax.numpy as jnp
import keras
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from efficientnetv2 import engines, progressive
from efficientnetv2.data import device as augmentation
from efficientnetv2.engines import jax_devices, optimizers

set_up = jax_devices.set_up
is_chief = jax_devices.is_chief


class Engine(engines.BaseEngine):
    """The engine of `engines` on JAX.

    The state lives on the devices; the Keras variables only give it names,
    shapes and initial values.
    """

    def __init__(self, config, plan):
        super().__init__(config, plan)
        self._devices = set_up(config, plan is not None)
        self.replicas = len(self._devices)
        jax_devices.check_replicas(config, self.replicas)
        self.augments = augmentation.is_chosen(
            config, self._devices[0].platform != "cpu"
        )
        self.device = jax_devices.describe_devices(self._devices)
        self._everywhere, self._split = jax_devices.shardings(self._mesh())
        self._state = self._infer = self._running = None
        self._rows: dict[tuple[int, ...], int] = {}
        self._averaged: dict[str, str] = {}
        self._build()
        variables = {"network": self._network.variables}
        if plan:
            variables["optimizer"] = self.optimizer.variables
        self._variables = {
            f"{group}/{name}": variable
            for group, members in variables.items()
            for name, variable in engines.by_name(members).items()
        }
        self._trained = self._names(self.trained)
        self._others = self._names(self._network.non_trainable_variables)
        if plan:
            chosen = zip(self._trained, self._decayed, strict=True)
            self._decayed = [name for name, is_decayed in chosen if is_decayed]
            self._slots = self._names(self.optimizer.variables)
            scale = getattr(self.optimizer, "dynamic_scale", None)
            self._scale = self._names([] if scale is None else [scale])
            averaged = self._network.weights if config.train.ema_decay else []
            self._averaged = {
                name.replace("network/", "ema/", 1): name
                for name in self._names(averaged)
            }
            self.reset_average()

    def _names(self, variables) -> list[str]:
        """Returns the names of variables in the state."""
        name_of = {id(v): name for name, v in self._variables.items()}
        return [name_of[id(variable)] for variable in variables]

    # ---- The state -------------------------------------------------------

    @property
    def network(self) -> keras.Model:
        """The model from images to logits, with its current raw weights.

        A step donates their memory: ask again after each. To train from weights
        that are set here, call `reset_average`.
        """
        if self._state is not None and self._has_moved:
            self._has_moved = False
            for name, variable in self._variables.items():
                variable.assign(self._state[name])
        return self._network

    def reset_average(self) -> None:
        """Begins at step 0, with the weights of `network`."""
        state = {n: np.array(v.value) for n, v in self._variables.items()}
        state |= {ema: state[name] for ema, name in self._averaged.items()}
        self._set_state({"step": np.int32(0), **state})

    def _set_state(self, state: dict[str, np.ndarray]) -> None:
        self._running = None
        self._state = jax.device_put(
            {**state, "first_bad": np.int32(-1)}, self._everywhere
        )
        # So that Keras holds no second copy.
        self._has_moved = True
        _ = self.network

    def restore(self, arrays: Mapping[str, np.ndarray], source) -> None:
        """Sets the whole state, or leaves it unchanged if it does not fit."""
        state = {n: v for n, v in self._state.items() if n != "first_bad"}
        engines.check_shapes(
            {n: v.shape for n, v in state.items()}, arrays, source
        )
        self._set_state(
            {n: np.array(arrays[n], v.dtype) for n, v in state.items()}
        )

    def arrays(self) -> dict[str, np.ndarray]:
        """Returns a copy of the state, by the names of every backend."""
        state = jax.device_get(self._state)
        del state["first_bad"]
        return {
            # Counters and seeds have the type that TensorFlow gives them.
            name: np.array(
                array,
                np.int64
                if np.issubdtype(array.dtype, np.integer)
                else array.dtype,
            )
            for name, array in state.items()
        }

    def first_bad_step(self) -> int | None:
        """Returns the first step whose loss was not finite, None if none.

        That step and those after it did not change the state.
        """
        step = int(self._state["first_bad"])
        return None if step < 0 else step

    def end_training(self) -> None:
        """Frees what only training needs; `logits` are the network's now."""
        network = self.network
        self._state = self._step_function = self._running = None
        self.optimizer = None
        self._variables = {
            name: variable
            for name, variable in self._variables.items()
            if name.startswith("network/")
        }
        for variable in network.variables:
            # Its own memory, for as long as it lives.
            variable.assign(np.array(variable.value))

    # ---- A step ----------------------------------------------------------

    def dataset(self, make_dataset: Callable) -> Iterator[tuple]:
        """Yields batches on the devices.

        A batch is transferred while the previous step still runs on the
        devices: `step` does not wait for it.
        """
        for batch in make_dataset().as_numpy_iterator():
            yield jax.device_put(batch, self._split)

    def step(self, batch, dropout_rate: float) -> dict[str, jax.Array]:
        """Makes an optimizer step; returns its metrics on the device."""
        if self._step_function is None:
            self._step_function = self.step_function()
        self._has_moved = True
        self._state, metrics = self._step_function(
            self._state, batch, np.float32(dropout_rate)
        )
        # One step may wait behind the one that is running. More would only
        # hold batches in the device's memory.
        jax.block_until_ready(self._running)
        self._running = metrics
        return metrics

    def step_function(self, devices: Sequence | None = None):
        """Returns the compiled step, as `step` calls it.

        A jitted function from (state, batch, dropout rate) to (state, metrics),
        to be called, lowered or exported for devices, which may be those of
        another machine; `step_arguments` says of what shapes.
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

        `batch` are those of a batch that is not images and labels, see `step`.
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
        config = self.config
        step = state["step"].astype(jnp.float32)
        scale = 1.0
        for name in self._scale:
            scale = state[name].astype(jnp.float32)
        cross_entropy, hits, gradients, after = self._accumulate(
            mesh, micro_batch_size, state, images, labels, rate, scale
        )
        coefficient = progressive.weight_decay(config, self.plan, step)
        squares = 0.0
        for name in self._decayed:
            value = state[name]
            gradients[name] += (coefficient * scale) * value
            squares += 0.5 * jnp.sum(jnp.square(value))
        l2 = coefficient * squares
        gradients = _clip(gradients, config.train.gclip, scale)
        trained, slots = self.optimizer.stateless_apply(
            [state[name] for name in self._slots],
            [gradients[name] for name in self._trained],
            [state[name] for name in self._trained],
        )
        after = {**state, **after, "step": state["step"] + 1}
        after |= zip(self._trained, trained, strict=True)
        after |= zip(self._slots, slots, strict=True)
        part = 1.0 - optimizers.ema_decay(config, step)
        for ema, name in self._averaged.items():
            after[ema] = state[ema] - part * (state[ema] - after[name])
        loss = cross_entropy + l2
        first_bad = jnp.where(
            (state["first_bad"] < 0) & ~jnp.isfinite(loss),
            state["step"],
            state["first_bad"],
        )
        # From a bad step on, nothing changes.
        state = jax.tree.map(
            functools.partial(jnp.where, first_bad < 0), after, state
        )
        metrics = {"loss": loss, "cross_entropy": cross_entropy, "l2": l2}
        metrics |= {"top1": jnp.mean(hits[0]), "top5": jnp.mean(hits[1])}
        return {**state, "first_bad": first_bad}, metrics

    def _accumulate(self, mesh, micro, state, images, labels, rate, scale):
        """Returns the result of `_gradients`, one micro-batch at a time.

        Each micro-batch takes its images from all devices, where they already
        are.
        """
        replicas = mesh.size
        part = images.shape[0] // replicas
        size = min(micro or part, part)
        count = part // size
        if count == 1:
            return self._gradients(state, images, labels, rate, scale)
        sharding = NamedSharding(mesh, PartitionSpec(None, jax_devices.BATCH))

        def cut(values):
            values = values.reshape(replicas, count, size, *values.shape[1:])
            values = values.swapaxes(0, 1)
            values = values.reshape(count, replicas * size, *values.shape[3:])
            return jax.lax.with_sharding_constraint(values, sharding)

        def add(carry, batch):
            cross_entropy, gradients, others = carry
            more, hits, addends, others = self._gradients(
                {**state, **others}, *batch, rate, scale
            )
            cross_entropy += more / count
            gradients = {
                name: gradient + addends[name] / count
                for name, gradient in gradients.items()
            }
            return (cross_entropy, gradients, others), hits

        zeros = {name: jnp.zeros_like(state[name]) for name in self._trained}
        others = {name: state[name] for name in self._others}
        (cross_entropy, gradients, others), hits = jax.lax.scan(
            add, (jnp.float32(0), zeros, others), (cut(images), cut(labels))
        )
        return cross_entropy, hits, gradients, others

    def _gradients(self, state, images, labels, rate, scale):
        """Returns cross-entropy, hits, gradients and what the layers changed.

        The gradients are those of `scale` times the cross-entropy.
        """
        train = self.config.train

        def loss(trained):
            logits, changed = self._call(
                {**state, **trained}, images, training=True, rate=rate
            )
            cross_entropy = engines.cross_entropy(
                labels,
                logits,
                train.loss_type,
                train.label_smoothing,
                self.class_weights,
            )
            return cross_entropy * scale, (cross_entropy, logits, changed)

        trained = {name: state[name] for name in self._trained}
        gradients, (cross_entropy, logits, changed) = jax.grad(
            loss, has_aux=True
        )(trained)
        return cross_entropy, engines.hits(labels, logits), gradients, changed

    def _call(self, values, images, training, rate=None):
        """Returns logits, and what the layers changed."""
        dropout = self._network.get_layer("head").dropout
        # Of this trace: a stage has its own rate.
        dropout.rate_variable = rate
        try:
            logits, others = self._network.stateless_call(
                [values[name] for name in self._trained],
                [values[name] for name in self._others],
                images,
                training=training,
            )
        finally:
            dropout.rate_variable = None
        return logits, dict(zip(self._others, others, strict=True))

    # ---- Evaluation ------------------------------------------------------

    def logits(self, images) -> np.ndarray:
        """Returns the logits of the averaged weights, else of the raw ones.

        A batch smaller than an earlier one is padded, which avoids recompiling.
        """
        images = np.asarray(images)
        rows, shape = len(images), images.shape[1:]
        most = max(rows, self._rows.get(shape, 0))
        most = self._rows[shape] = -(-most // self.replicas) * self.replicas
        padding = [(0, most - rows)] + [(0, 0)] * len(shape)
        if self._state is None:
            values = {n: v.value for n, v in self._variables.items()}
        else:
            averages = {
                name: self._state[ema] for ema, name in self._averaged.items()
            }
            values = {**self._state, **averages}
        values = {name: values[name] for name in self._trained + self._others}
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
        """Whether an error says that a device is out of memory."""
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

"""Normalization layers of the EfficientNet family."""

import keras

from efficientnetv2.models.convolutions import runs_on_tensorflow_cpu


@keras.saving.register_keras_serializable(package="efficientnetv2")
class BatchNormalization(keras.layers.BatchNormalization):
    """Batch normalization on TensorFlow's fused kernel.

    On several replicas the statistics are those of the whole batch.

    Same weights, same arguments and same numbers as
    `keras.layers.BatchNormalization`, which on the TensorFlow backend computes
    mean, squared difference and a dozen element-wise operations one by one.
    The moving variance follows Keras 3 (biased batch variance), so the sample
    correction that the fused kernel applies is taken back.

    Inputs that the kernel does not know (other ranks, another axis, masks,
    synchronized statistics, a backend other than TensorFlow) take the path of
    the parent class.

    Source: Ioffe and Szegedy, arXiv 1502.03167.
    """

    def call(self, inputs, training=None, mask=None):
        if keras.backend.backend() == "jax":
            # A batch over several devices is one array, whose statistics XLA
            # computes over all of them; Keras refuses the flag.
            self.synchronized = False
            return super().call(inputs, training=training, mask=mask)
        training = bool(training) and self.trainable
        # At inference on CPU a product and a sum do; the graph optimizer then
        # changes no bit of them, as it does to the fused kernel.
        plain = not training and runs_on_tensorflow_cpu()
        if plain or not self._can_fuse(inputs, mask):
            return super().call(inputs, training=training, mask=mask)
        if training and _number_of_replicas() > 1:
            return self._synchronized_call(inputs, mask)
        return self._fused_call(inputs, training)

    def _synchronized_call(self, inputs, mask):
        self.synchronized = True
        try:
            return super().call(inputs, training=True, mask=mask)
        finally:
            self.synchronized = False

    def _can_fuse(self, inputs, mask) -> bool:
        return (
            keras.backend.backend() == "tensorflow"
            and mask is None
            and not self.synchronized
            and self.scale
            and self.center
            and len(inputs.shape) == 4
            and self.axis in (-1, 3)
        )

    def _fused_call(self, inputs, training: bool):
        import tensorflow as tf

        inputs = tf.convert_to_tensor(inputs)
        outputs, mean, variance, *_ = tf.raw_ops.FusedBatchNormV3(
            x=inputs,
            scale=tf.cast(self.gamma, "float32"),
            offset=tf.cast(self.beta, "float32"),
            mean=tf.zeros([0])
            if training
            else tf.cast(self.moving_mean, "float32"),
            variance=(
                tf.zeros([0])
                if training
                else tf.cast(self.moving_variance, "float32")
            ),
            epsilon=self.epsilon,
            is_training=training,
        )
        if training:
            count = tf.cast(tf.size(inputs) / tf.shape(inputs)[-1], "float32")
            # The kernel returns the unbiased estimate, n / (n - 1) times ours.
            variance *= (count - 1.0) / tf.maximum(count, 2.0)
            for moving, batch in (
                (self.moving_mean, mean),
                (self.moving_variance, variance),
            ):
                moving.assign(
                    moving * self.momentum + batch * (1.0 - self.momentum)
                )
        return outputs


def _number_of_replicas() -> int:
    import tensorflow as tf

    context = tf.distribute.get_replica_context()
    return 1 if context is None else context.num_replicas_in_sync


def normalization(
    norm_type: str | None,
    momentum: float = 0.9,
    epsilon: float = 1e-3,
    groups: int = 8,
    name: str | None = None,
) -> keras.layers.Layer:
    """Returns the normalization layer that follows a convolution.

    Args:
        norm_type: None or 'bn' for batch normalization, 'sync_bn' for
            statistics over all replicas, 'gn' for group normalization.
        momentum: decay of the moving statistics, in [0, 1]; the released code
            uses 0.9, the paper 0.99.
        epsilon: added to the variance.
        groups: number of groups of group normalization; where it does not
            divide the number of channels, building the layer is an error.
        name: name of the layer.

    Raises:
        ValueError: for an unknown `norm_type`.
    """
    if norm_type in (None, "bn"):
        return BatchNormalization(momentum=momentum, epsilon=epsilon, name=name)
    if norm_type == "sync_bn":
        return BatchNormalization(
            momentum=momentum, epsilon=epsilon, synchronized=True, name=name
        )
    if norm_type == "gn":
        return keras.layers.GroupNormalization(
            groups=groups, epsilon=epsilon, name=name
        )
    raise ValueError(
        f"Unknown normalization {norm_type!r}: use 'bn', 'sync_bn' or 'gn'."
    )

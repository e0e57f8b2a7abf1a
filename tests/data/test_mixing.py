"""Mixup and CutMix."""

import jax
import keras
import numpy as np
import pytest
import scipy.stats
import tensorflow as tf
from hypothesis import given
from hypothesis import strategies as st

from efficientnetv2.data import mixing, pipeline
from tests.conftest import examples


def _batch(size=12, pixels=16):
    """Images whose every pixel is the number of the example."""
    numbers = np.arange(size, dtype=np.float32)
    images = np.broadcast_to(
        numbers[:, None, None, None], (size, pixels, pixels, 3)
    )
    return tf.constant(images), tf.one_hot(np.arange(size), size)


def mix(images, labels, seed, mixup, cutmix, rows=None, batch=None, **options):
    batch = batch or len(images)
    rows = range(batch) if rows is None else rows
    parts = mixing.draw_parts(
        images.shape[1], seed, mixup, cutmix, rows, batch, **options
    )
    return mixing.mix(images, labels, **parts)


_ALPHAS = st.just(0.0) | st.floats(0, 100, width=32)


@examples(60)
@given(
    mixup=_ALPHAS,
    cutmix=_ALPHAS,
    seed=st.integers(0, 2**31 - 1),
    size=st.integers(1, 9),
    pixels=st.integers(1, 12),
    multi_label=st.booleans(),
)
def test_any_batch_mixes_pairs_in_the_parts_that_labels_say(
    mixup, cutmix, seed, size, pixels, multi_label
):
    random = np.random.default_rng(seed)
    images = random.normal(size=(size, pixels, pixels, 3)).astype(np.float32)
    labels = np.eye(5, dtype=np.float32)[random.integers(0, 5, size)]
    if multi_label:
        labels = random.integers(0, 2, (size, 5)).astype(np.float32)
    mixed, mixed_labels = (
        values.numpy()
        for values in mix(images, labels, [seed, 1], mixup, cutmix)
    )
    assert mixed.dtype == mixed_labels.dtype == np.float32
    partner, in_mixup = (
        values.numpy() for values in mixing.partners(size, mixup, cutmix)
    )
    assert (partner[partner] == np.arange(size)).all()
    if mixup == cutmix == 0:
        np.testing.assert_array_equal(mixed, images)
        np.testing.assert_array_equal(mixed_labels, labels)
        return
    for result, values in ((mixed, images), (mixed_labels, labels)):
        low = np.minimum(values, values[partner])
        high = np.maximum(values, values[partner])
        assert (result >= low - 1e-5).all() and (result <= high + 1e-5).all()
    if not multi_label:
        np.testing.assert_allclose(mixed_labels.sum(axis=1), 1, atol=1e-6)
    for row, own in enumerate(images):
        other, is_mixup = images[partner[row]], in_mixup[row]
        difference = other - own
        if is_mixup:
            # One part for all pixels, by least squares.
            squares = np.sum(difference**2)
            part = np.sum(difference * (mixed[row] - own)) / max(squares, 1e-9)
            assert -1e-4 <= part <= 0.5 + 1e-4
            pasted = part
        else:
            # A pixel is that of one or of the other.
            pasted = (mixed[row] != own).any(axis=-1, keepdims=True)
            part = pasted.mean()
        np.testing.assert_allclose(
            mixed[row], own + pasted * difference, atol=1e-5
        )
        expected = labels[row] + part * (labels[partner[row]] - labels[row])
        np.testing.assert_allclose(mixed_labels[row], expected, atol=1e-4)


def test_both_share_the_batch_and_pair_within_their_half():
    partner, in_mixup = mixing.partners(7, 0.2, 0.2)
    assert in_mixup.numpy().tolist() == [True] * 3 + [False] * 4
    assert partner.numpy().tolist() == [2, 1, 0, 6, 5, 4, 3]
    partner, in_mixup = mixing.partners(4, 0.2, 0.0)
    assert in_mixup.numpy().all() and partner.numpy().tolist() == [3, 2, 1, 0]
    _, in_mixup = mixing.partners(4, 0.0, 0.2)
    assert not in_mixup.numpy().any()


@pytest.mark.parametrize("alpha", [0.001, 0.0167, 0.2, 1.0, 8.0])
def test_draws_are_those_of_the_beta_distribution(alpha):
    random = np.random.default_rng(3)
    uniforms = random.random((200_000, 4), np.float32)
    draws = np.asarray(mixing.symmetric_beta(uniforms, np.float32(alpha)))
    assert draws.dtype == np.float32
    # Nearer to 0 or 1 than the first edge float32 does not resolve.
    edges = [0, 1e-5, 1e-3, 0.01, 0.1, 0.3, 0.45]
    edges = np.array([*edges, *(1 - np.array(edges[::-1]))])
    parts = np.diff(scipy.stats.beta.cdf(edges, alpha, alpha))
    # By symmetry, where 1 - edge has lost its digits.
    parts[-6:] = parts[:6][::-1]
    counts, _ = np.histogram(draws, edges)
    keep = parts > 1e-7
    result = scipy.stats.chisquare(
        counts[keep], parts[keep] / parts[keep].sum() * counts[keep].sum()
    )
    assert counts[~keep].sum() <= 1 and result.pvalue > 1e-3
    if alpha == 0.0167:
        inside = np.mean((draws > 0.01) & (draws < 0.99))
        assert inside == pytest.approx(0.073, abs=0.003)
    for ops in (np, jax.numpy, keras.ops):
        again = mixing.symmetric_beta(uniforms, np.float32(alpha), ops)
        np.testing.assert_allclose(again, draws, atol=2e-4)


def test_mixing_runs_under_xla_and_in_half_precision():
    images, labels = _batch()

    @tf.function(jit_compile=True)
    def compiled(images, labels, alpha):
        return mix(images, labels, [1, 2], alpha, alpha)

    expected, again, other = (
        mix(images, labels, [1, k], 0.3, 0.3) for k in (2, 2, 3)
    )
    np.testing.assert_array_equal(again[0], expected[0])
    assert not np.array_equal(other[0], again[0])
    fast = compiled(images, labels, tf.constant(0.3))
    for one, two in zip(fast, expected, strict=True):
        np.testing.assert_allclose(one, two, atol=1e-4)
    for dtype in (tf.float16, tf.bfloat16):
        half = tf.cast(images, dtype)
        mixed, mixed_labels = mix(half, labels, [1, 2], 0.3, 0.3)
        assert mixed.dtype == dtype and mixed_labels.dtype == tf.float32
        mixed = tf.cast(mixed, tf.float32)
        np.testing.assert_allclose(mixed, expected[0], atol=0.1)
    with pytest.raises(TypeError, match="uint8"):
        mix(tf.cast(images, tf.uint8), labels, [1, 2], 0.3, 0.3)


def test_mixing_shares_no_draw_with_cutouts_noise():
    """Streams are told apart by a seed's first number, steps by its second."""
    asked = []
    draw = tf.random.stateless_uniform

    def note(shape, seed, *args, **kwargs):
        asked.append(tuple(np.asarray(seed).tolist()))
        return draw(shape, seed, *args, **kwargs)

    images, labels = _batch()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tf.random, "stateless_uniform", note)
        mix(images, labels, [6, 9], 0.3, 0.3)
    assert set(asked) == {(6, 9)}


def test_labels_of_cutmix_by_image_or_as_in_the_released_code():
    images, labels = _batch(40, 20)
    by = {
        name: mix(images, labels, [4, 5], 0.3, 1.0, cutmix_labels=name)
        for name in ("image", "batch")
    }
    np.testing.assert_array_equal(by["image"][0], by["batch"][0])
    # CutMix has the second half of the batch.
    number = np.arange(40)[20:]
    pasted = by["image"][0].numpy()[20:, ..., 0] != number[:, None, None]
    own, mean = (np.diag(by[name][1])[20:] for name in ("image", "batch"))
    np.testing.assert_allclose(own, 1 - pasted.mean(axis=(1, 2)), atol=1e-5)
    np.testing.assert_allclose(mean, 1 - pasted.mean(), atol=1e-5)
    assert np.ptp(own) > 0.3
    np.testing.assert_array_equal(by["image"][1][:20], by["batch"][1][:20])


@pytest.mark.parametrize("cutmix_labels", ["image", "batch"])
def test_parts_of_a_batch_are_mixed_like_the_whole(cutmix_labels):
    images, labels = _batch(16)

    def mixed(*values, **kwargs):
        return mix(
            *values, [1, 2], 0.3, 0.3, cutmix_labels=cutmix_labels, **kwargs
        )

    whole = mixed(images, labels)
    for part in range(2):
        rows = pipeline.rows_of_part(16, part, 2)
        values = (tf.gather(each, rows) for each in (images, labels))
        part_of_it = mixed(*values, rows=rows, batch=16)
        for one, two in zip(part_of_it, whole, strict=True):
            np.testing.assert_allclose(one, two.numpy()[rows], atol=1e-5)


def test_cutmix_shows_a_rectangle_of_the_partner():
    images, labels = _batch(300, 32)
    mixed, mixed_labels = mix(images, labels, [1, 2], 0.0, 1.0)
    mixed_labels = mixed_labels.numpy()
    for index, image in enumerate(mixed.numpy()[..., 0]):
        other = image != index
        rows, columns = other.any(axis=1), other.any(axis=0)
        assert other.sum() == rows.sum() * columns.sum()
        assert mixed_labels[index, index] == pytest.approx(
            1 - other.mean(), abs=1e-5
        )

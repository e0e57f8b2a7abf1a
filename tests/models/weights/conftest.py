"""Fixtures that the tests of weights share."""

import numpy as np
import pytest

from tests.models.weights.made import slim_model


@pytest.fixture
def images():
    return np.random.default_rng(1).uniform(0, 255, (2, 64, 64, 3))


@pytest.fixture(scope="module")
def slim():
    return slim_model()

"""The learning-rate range test."""

import numpy as np
import pytest
from PIL import Image

from efficientnetv2 import lr_finder
from efficientnetv2.errors import UserError


@pytest.mark.slow
@pytest.mark.usefixtures("small_data")
def test_a_rate_at_which_the_loss_falls(tiny_config, tmp_path):
    config = tiny_config("data.augname=null,train.stages=2")
    result = lr_finder.find_learning_rate(config, steps=40, log=lambda _: None)
    assert len(result.rates) == len(result.losses) > 5
    ratios = result.rates[1:] / result.rates[:-1]
    np.testing.assert_allclose(ratios, (10.0 / 1e-5) ** (1 / 40), rtol=1e-3)
    # Below, nothing happens yet; the loss of ten classes begins at ln 10.
    assert result.losses[0] == pytest.approx(np.log(10), abs=0.3)
    assert 1e-3 < result.suggestion < 10
    assert config.train.stages == 2
    lr_finder.draw_range_test(result, tmp_path / "rate.png")
    assert Image.open(tmp_path / "rate.png").size == (900, 525)


def test_a_loss_that_never_falls():
    rates = np.geomspace(1e-5, 1, 20)
    with pytest.raises(UserError, match="does not fall at any"):
        lr_finder._steepest(rates, list(np.linspace(1, 2, 20)))
    with pytest.raises(UserError, match="within five steps"):
        lr_finder._steepest(rates[:3], [1, 2, 3])

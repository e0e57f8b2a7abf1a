"""The folder of a run."""

import numpy as np
import pytest
import yaml

from efficientnetv2 import checkpoints, runs
from efficientnetv2 import config as config_lib
from efficientnetv2.errors import UserError


def test_a_folder_of_an_earlier_version_lacks_options(tiny_config, tmp_path):
    config = tiny_config()
    old = config.to_dict()
    del old["data"]["cutmix_labels"]
    path = tmp_path / config_lib.FILE
    path.write_text(yaml.safe_dump(old))
    # Without a checkpoint nothing has begun, and any configuration may begin.
    checkpoints.save(tmp_path, {"a": np.zeros(1)}, {"step": 1}, keep=1)
    with runs.claimed(runs.Run(tmp_path), config):
        assert "cutmix_labels: image" in path.read_text()
    other = tiny_config("data.cutmix_labels=batch")
    with pytest.raises(UserError, match="data.cutmix_labels: 'image' there"):
        with runs.claimed(runs.Run(tmp_path), other):
            pass

"""The accuracy of anything that predicts."""

import dataclasses

import numpy as np
import pytest
import yaml

from efficientnetv2.data.sources import ArraySource
from efficientnetv2.errors import DataError
from efficientnetv2.serving import loading, predict


def test_a_saved_model_scores_as_its_run(folder_run, source):
    classifier = loading.load(folder_run / "saved_model")
    images = np.repeat(source.images, 3, axis=-1)
    split = ArraySource(images, source.labels, source.class_names)
    result = predict.evaluate(classifier, split, batch_size=64)
    assert result["images"] == 200 and result["top1"] > 0.9
    assert result["top5"] >= result["top1"]
    # Another order of the classes, and only some of them.
    few = split.labels >= 5
    other = ArraySource(
        images[few], 9 - split.labels[few], source.class_names[:4:-1]
    )
    again = predict.evaluate(classifier, other)
    assert again["images"] == 100 and again["top1"] > 0.9


def test_a_class_that_the_model_does_not_know(folder_run, source):
    classifier = loading.load(folder_run / "saved_model")
    names = ["zebra", *source.class_names[1:]]
    with pytest.raises(DataError, match="does not know the class 'zebra'"):
        predict.evaluate(
            classifier, dataclasses.replace(source, class_names=names)
        )


def test_weights_without_a_run(folder_run, capfd):
    """The command, with a run's checkpoint as a user's own weights."""
    from efficientnetv2 import cli
    from efficientnetv2.commands.run import by_mode

    photos = folder_run.parent / "photos"
    architecture = folder_run.parent / "tiny.yaml"
    saved = yaml.safe_load((folder_run / "config.yaml").read_text())
    model = {**saved["model"], "model_name": "tiny"}
    architecture.write_text(
        yaml.safe_dump(
            {
                "model": model,
                "eval": {"isize": 24},
                "data": {"augname": None, "eval_transformations": []},
            }
        )
    )
    arguments = [
        "--mode=eval",
        f"--model_name={architecture}",
        f"--weights={folder_run}",
        f"--dataset={photos}",
    ]
    with pytest.raises(SystemExit) as ended:
        cli.start(by_mode, "main", arguments)
    output = capfd.readouterr()
    assert ended.value.code == 0, output.err
    accuracy = float(output.out.partition("top-1 ")[2].partition("%")[0])
    assert accuracy > 90 and "(200 images, " in output.out
    with pytest.raises(SystemExit) as ended:
        cli.start(by_mode, "main", [*arguments, "--model_dir=there"])
    assert "leave out --model_dir" in capfd.readouterr().err
    with pytest.raises(SystemExit) as ended:
        cli.start(by_mode, "main", arguments[:1] + arguments[2:3])
    assert "needs --model_name and --dataset" in capfd.readouterr().err

"""The weights that fine-tuning starts from."""

import keras
import ml_collections

from efficientnetv2 import config as config_lib
from efficientnetv2 import zoo
from efficientnetv2.data import fingerprint, registry
from efficientnetv2.models import weights


def initialize(network: keras.Model, config: ml_collections.ConfigDict) -> str:
    """Loads `train.ft_init_ckpt` into a network.

    A classifier of as many classes is loaded too, but not that of a run on
    classes of other names.

    Returns:
        What was loaded, in a line for the log.

    Raises:
        UserError: for weights that cannot be obtained or do not fit.
    """
    classifier = network.get_layer("logits")
    fresh = classifier.get_weights()
    path = zoo.resolve_source(network, config.train.ft_init_ckpt)
    try:
        text = str(weights.load(network, path, skip_classifier=True))
    except weights.WeightsError as error:
        of_run = config_lib.model_of_run(str(path)).get("model_name")
        if of_run in (None, config.model.model_name):
            raise
        raise weights.WeightsError(
            f"{error}\nThey are weights of {of_run}: --model_name={of_run}."
        ) from None
    names = registry.load_info(config.data.ds_name).class_names
    # A checkpoint lies in a folder of the run.
    if fingerprint.class_names(path.parent.parent) not in (None, names):
        classifier.set_weights(fresh)
        text += " Its classes have other names: the classifier starts anew."
    return text

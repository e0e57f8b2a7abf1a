"""What setup.cfg cannot say: which TensorFlow a machine needs.

A machine with a TPU trains by JAX, and TensorFlow there only reads data and
exports: that is `tensorflow-cpu`, which leaves JAX, NumPy and h5py as they are.
Names of packages are all that a requirement can choose by, so the choice is
made here, by what is installed already.
"""

import configparser
import site
import sysconfig
from importlib import metadata

import setuptools

TENSORFLOW_CPU = "tensorflow-cpu>=2.20,<2.21"


def requirements() -> list[str]:
    config = configparser.ConfigParser()
    config.read("setup.cfg")
    lines = config["options"]["install_requires"].split("\n")
    requires = list(filter(None, lines))
    # pip builds in an environment of its own; these are of the one it fills.
    folders = [sysconfig.get_path("purelib"), *site.getsitepackages()]
    installed = {
        each.metadata["Name"].lower().replace("_", "-")
        for each in metadata.distributions(path=folders)
    }
    if "tensorflow" not in installed and installed & {"libtpu", "tensorflow-cpu"}:
        requires = [
            TENSORFLOW_CPU if each.startswith("tensorflow>") else each
            for each in requires
        ]
    return requires


setuptools.setup(install_requires=requirements())

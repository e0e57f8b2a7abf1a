"""What setup.cfg cannot say: which TensorFlow this machine needs.

A machine with a TPU trains by JAX. TensorFlow only reads data and exports
there, so it is `tensorflow-cpu`, in the version that leaves Colab's other
packages as they are. A requirement knows no alternatives; so the name is chosen
here, by what is installed when the package is built.
"""

import configparser
import site
import sysconfig
from importlib import metadata

import setuptools

TENSORFLOW_CPU = "tensorflow-cpu>=2.20,<2.21"


def requirements(installed: set[str]) -> list[str]:
    """Returns those of setup.cfg, given the names of installed packages."""
    config = configparser.ConfigParser()
    config.read("setup.cfg")
    lines = config["options"]["install_requires"].strip().split("\n")
    for_tpu = {"libtpu", "tensorflow-cpu"} & installed
    if "tensorflow" in installed or not for_tpu:
        return lines
    return [
        TENSORFLOW_CPU if line.startswith("tensorflow>") else line
        for line in lines
    ]


def installed() -> set[str]:
    # pip builds in an environment of its own; this is the one that it fills.
    folders = [sysconfig.get_path("purelib"), *site.getsitepackages()]
    return {
        each.metadata["Name"].lower().replace("_", "-")
        for each in metadata.distributions(path=folders)
    }


if __name__ == "__main__":
    setuptools.setup(install_requires=requirements(installed()))

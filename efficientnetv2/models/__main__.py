"""`python -m efficientnetv2.models` is `efficientnetv2 models`."""

from efficientnetv2 import cli
from efficientnetv2.commands import models

if __name__ == "__main__":
    cli.start(models, "python -m efficientnetv2.models")

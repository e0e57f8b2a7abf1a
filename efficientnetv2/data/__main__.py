"""`python -m efficientnetv2.data` is `efficientnetv2 data`."""

from efficientnetv2 import cli
from efficientnetv2.commands import data

if __name__ == "__main__":
    cli.start(data, "python -m efficientnetv2.data")

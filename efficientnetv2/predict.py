"""`python -m efficientnetv2.predict` is `efficientnetv2 predict`."""

from efficientnetv2 import cli
from efficientnetv2.commands import predict

if __name__ == "__main__":
    cli.start(predict, "python -m efficientnetv2.predict")

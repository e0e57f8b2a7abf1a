"""All modes of a run by one program; see `commands.run.by_mode`."""

from efficientnetv2 import cli
from efficientnetv2.commands.run import by_mode

if __name__ == "__main__":
    cli.start(by_mode, "python -m efficientnetv2.main")

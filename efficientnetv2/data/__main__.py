"""`python -m efficientnetv2.data` is `efficientnetv2 data`."""

from efficientnetv2 import cli, commands

if __name__ == "__main__":
    cli.start(commands.load_command("data"), "python -m efficientnetv2.data")

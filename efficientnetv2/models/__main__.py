"""`python -m efficientnetv2.models` is `efficientnetv2 models`."""

from efficientnetv2 import cli, commands

if __name__ == "__main__":
    cli.start(
        commands.load_command("models"), "python -m efficientnetv2.models"
    )

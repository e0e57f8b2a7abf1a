"""`python -m efficientnetv2.predict` is `efficientnetv2 predict`."""

from efficientnetv2 import cli, commands

if __name__ == "__main__":
    cli.start(
        commands.load_command("predict"), "python -m efficientnetv2.predict"
    )

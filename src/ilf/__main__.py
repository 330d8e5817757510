"""Run an ILF experiment: `python -m ilf` is the same as the command `ilf`."""

from ilf.cli.main import command

if __name__ == "__main__":
    command()

"""Run an ILF experiment: `python -m ilf` is `ilf`."""

from ilf.cli.main import command

if __name__ == "__main__":
    command()

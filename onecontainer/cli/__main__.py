"""`python -m onecontainer.cli` is `oca`."""

from onecontainer.cli.main import cli

if __name__ == "__main__":
    cli(prog_name="oca")

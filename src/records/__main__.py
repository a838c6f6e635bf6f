"""`python -m tinymem.records`: see tinymem.cli.records."""

from tinymem import cli

# isort: split
from tinymem.cli.records import PROGRAM, main

if __name__ == "__main__":
    cli.run(main, PROGRAM)

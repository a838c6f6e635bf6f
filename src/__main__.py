"""The command `tinymem` (or `python -m tinymem`): the scripts as sub-commands. Its help does not load torch."""

import sys

import tinymem
from tinymem import scripts

HELP = f"""usage: tinymem COMMAND [options]

Train small language models that memorize, measure it, and unlearn it.

{{commands}}

`tinymem COMMAND --help` explains a command, `tinymem --list` names every mitigation, metric and attack.
Version {tinymem.__version__}."""


def main() -> int:
    """Run a sub-command with the remaining arguments. Return 2 if there is no such sub-command."""
    name, *others = sys.argv[1:] or [""]
    if name in ("-h", "--help", ""):
        width = max(map(len, scripts.SCRIPTS))
        lines = (f"  {name:<{width}}  {script.about}" for name, script in scripts.SCRIPTS.items())
        print(HELP.format(commands="\n".join(lines)))
        return 0 if name else 2
    if name == "--list":
        from tinymem import cli
        from tinymem.cli.listing import listing

        cli.run(lambda: print(listing()))
        return 0
    if name == "--version":
        print(f"tinymem {tinymem.__version__}")
        return 0
    if name not in scripts.SCRIPTS:
        known = ", ".join(scripts.SCRIPTS)
        print(f"tinymem: error: {name!r} is no command; it must be one of {known} (see --help)", file=sys.stderr)
        return 2
    from tinymem import cli

    sys.argv = [cli.CONSOLE + name, *others]  # the program's name in messages and help
    cli.run(scripts.load(name).main)
    return 0


if __name__ == "__main__":
    sys.exit(main())

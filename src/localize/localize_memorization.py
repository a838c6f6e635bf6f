"""Unlearn what a TinyMem model has memorized: locate the neurons or weights responsible and set them to zero.

    python src/localize/localize_memorization.py --model_path runs/NAME/epoch_50 \\
        --localization_method balanced_subnet --ratio 0.1 0.3

The data settings come from the checkpoint; a data flag that contradicts them is an error.
"""

from tinymem import cli

# isort: split
from tinymem import allocator
from tinymem.cli.methods import add_method_options, chosen_methods
from tinymem.cli.subject import add_subject_options, load_subject
from tinymem.cli.unlearning import check_measuring, run_methods


def parse():
    parser = cli.Parser(__doc__)
    cli.add_list_option(parser)
    parser.add_argument("--model_path", required=True, help="a checkpoint folder of a training run")
    add_method_options(parser)
    add_subject_options(parser)
    cli.add_log_options(parser)
    return parser.parse_args()


def main() -> None:
    arguments = parse()
    methods = chosen_methods(arguments)
    check_measuring(arguments, methods)
    log = cli.open_log(arguments)
    allocator.keep_freed_memory()
    run_methods(load_subject(arguments), methods, arguments, log=log)


if __name__ == "__main__":
    cli.run(main)

"""Unlearn what a production language model has memorized: Pythia, Llama, OLMo, Qwen ... from the hub or a folder.

    python src/localize/prod_grad.py --model_name EleutherAI/pythia-2.8b-deduped-v0 --step 36000 --dtype bfloat16 \\
        --memorized pythia_mem_data/pythia-2.8b-deduped-v0.safetensors \\
        --random pythia_mem_data/pile_random_batch.safetensors --localization_method balanced_subnet --ratio 0.01 0.05

    python src/localize/prod_grad.py --model_name smollm2 --dtype bfloat16 --plant builtin --plant_sequences 128 \\
        --num_test 256 --num_retain 256 --localization_method balanced_subnet --ratio 0.05

Objectives (npo, simnpo ...) train on several GPUs, or in several processes of a CPU:

    accelerate launch --num_processes 4 src/localize/prod_grad.py --model_name ... --localization_method npo

Without --random, test and retain text comes from --corpus, read with the model's own tokenizer. With --plant the model
is first trained to recite passages, and --memorized is not needed. smollm2 is SmolLM2-135M from an installed package.
"""

from tinymem import cli

# isort: split
import sys

from tinymem import allocator
from tinymem.cli.methods import add_method_options, chosen_methods
from tinymem.cli.processes import check_shared, follow, together
from tinymem.cli.production import add_subject_options, load_subject, plan_methods
from tinymem.cli.unlearning import check_measuring, run_methods
from tinymem.models.production import LoadSettings
from tinymem.training.checkpoint import made_by
from tinymem.training.processes import started


def parse():
    parser = cli.Parser(__doc__)
    cli.add_list_option(parser)
    parser.add_argument("--model_name", required=True, help="a model's name on the hub, a folder, or smollm2")
    add_method_options(parser, without=("dtype",))
    parser.add_argument(
        "--dry_run", action="store_true", help="print the memory and passes of each method without loading weights"
    )
    add_subject_options(parser)
    cli.add_log_options(parser)
    return parser.parse_args()


def main() -> None:
    arguments = parse()
    loading = cli.collect(LoadSettings, arguments)
    methods = chosen_methods(arguments, dtype=loading.method_dtype)
    check_measuring(arguments, methods)
    processes = started()
    check_shared(processes, methods, loading)
    if arguments.dry_run:
        return plan_methods(arguments, loading, methods, processes) if processes.is_first else None
    allocator.use_huge_pages()
    with together(processes, arguments):
        if not processes.is_first:
            return follow(processes, methods, loading, arguments.device)
        log = cli.open_log(arguments)
        if method := made_by(arguments.model_name):
            print(
                f"{arguments.model_name}: was made by {method}, but counts as unedited: what is shown to a method is "
                "what this model still recites (always 100 %). To measure it as an edit: measure.py FOLDER "
                "--edit_of ORIGINAL",
                file=sys.stderr,
            )
        run_methods(load_subject(arguments, loading, methods, processes), methods, arguments, log=log)


if __name__ == "__main__":
    cli.run(main)

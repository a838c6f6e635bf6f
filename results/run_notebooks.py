"""Run the notebooks of this folder from top to bottom and keep their outputs.

    python results/run_notebooks.py
    python results/run_notebooks.py results/Visualization_Notebook.ipynb

TINYMEM_CHECKPOINT and TINYMEM_RECORDS select another model folder and another folder of records.
"""

from __future__ import annotations

from tinymem import cli

# isort: split
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tinymem import files
from tinymem.errors import UserError, first_line, reading

FOLDER = Path(__file__).resolve().parent
NOTEBOOKS = [FOLDER / "Visualization_Notebook.ipynb", FOLDER / "pythia_unlearning_results.ipynb"]
CELL_SECONDS = 600


def main() -> None:
    parser = cli.Parser(__doc__)
    parser.add_argument("notebooks", nargs="*", type=Path, help="default: both", default=NOTEBOOKS)
    parser.add_argument("--output_dir", help="where the executed notebooks go (default: in place of the old ones)")
    arguments = parser.parse_args()
    for path in arguments.notebooks:
        if not path.is_file():
            raise UserError(f"{path}: no such notebook")
    for path in arguments.notebooks:
        started = time.monotonic()
        execute(path, Path(arguments.output_dir or path.parent) / path.name)
        print(f"{path.name}: {time.monotonic() - started:.0f} s")


def execute(path: Path, output: Path) -> None:
    """Run a notebook in its own folder. Raise UserError, with the last line of the traceback, if a cell fails."""
    import nbformat
    from nbclient import NotebookClient
    from nbclient.exceptions import CellExecutionError, CellTimeoutError, DeadKernelError

    with reading(path, "not a notebook ({why})"):
        notebook = nbformat.read(path, as_version=4)
    place = {"metadata": {"path": str(path.parent)}}
    try:
        options = dict(timeout=CELL_SECONDS, record_timing=False, coalesce_streams=True, resources=place)
        with ThreadPoolExecutor(1) as thread:  # in the main thread, it would take Ctrl-C for a dead kernel
            thread.submit(NotebookClient(notebook, **options).execute).result()
    except CellExecutionError as error:
        print(error.traceback, file=sys.stderr)
        raise UserError(f"{path}: a cell failed with {error.ename}: {error.evalue}") from None
    except (CellTimeoutError, DeadKernelError) as error:
        raise UserError(f"{path}: a cell did not end ({first_line(error)})") from None
    files.write_file(output, lambda temporary: nbformat.write(notebook, temporary))


if __name__ == "__main__":
    cli.run(main)

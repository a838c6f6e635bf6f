"""Sweeps: a grid is data, a job is one command of an ordinary script, and a job is done if its records exist.

grid -> jobs    `hp_grid` has the methods' grids, `grid.combinations` gives every combination, `jobs` turns each into a
                command with the settings of its records. Ratios share a job: one process loads the model and ranks
                only once for all of them.
done            decided from records with exactly the job's settings, without loading a model. Only missing work runs.
attempt         runs one command in its own process on any machine, under a lock that every other sweep sees, after
                checking once more for its records. A failure leaves a record in failed/.
engine          submits jobs to a pool, retries failures, and holds back jobs that wait for others. It uses futures and
                is independent of Parsl; `pools` has the Parsl pool.

`tinymem.cli.sweeping` has the flags, the dry run, the progress bar, the table and the exit code of every sweep script.
The same command resumes a killed sweep. Two identical sweeps share the work.
"""

"""Sweeps: a grid is data, a job is one command of an ordinary script, done means that its records are there.

grid -> jobs    `hp_grid` has the methods' grids, `grid.combinations` gives every combination, `jobs` turns each into a
                command and says what settings its records will have. Ratios share a job: one process loads the model
                and ranks once for all of them.
done            decided without loading a model: by records whose settings contain the job's. Only what is missing runs.
attempt         runs one command in a process of its own, wherever that is: under a lock that every other sweep sees,
                looking once more for its records first. A failure leaves a record in failed/.
engine          hands jobs to a pool, again after failures, and holds back those that wait for others. It knows futures
                and nothing of Parsl; `pools` has the pool with it.
console         the flags, the dry run, the progress bar, the table and the exit code of every sweep script.

Killed anywhere, a sweep is started again with the same command and goes on. Two of the same share the work.
"""

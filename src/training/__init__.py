"""The training loop, its checkpoints, and how an interrupted run goes on."""

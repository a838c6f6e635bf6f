"""The training loop, what runs on it, its checkpoints, and how an interrupted run resumes."""

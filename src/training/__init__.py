"""The training loop, its users (training, fine-tuning, planting, objectives), checkpoints and resuming."""

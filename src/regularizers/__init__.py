"""Train-time regularizers, one file each, which join the training loop through one protocol."""

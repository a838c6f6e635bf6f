"""Train-time regularizers, one file each, plugged into the training loop through one protocol."""

"""Weight-level methods, one file each."""

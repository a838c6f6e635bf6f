"""Weight-level methods, one file each; they share edge_popup.py and block_fisher.py."""

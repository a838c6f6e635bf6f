"""Training data: number sequences or text, planted artifacts, one typed dataset object."""

"""What TinyMem trains on: number sequences or text, planted artifacts, one typed dataset object."""

"""Edits from the curvature of the loss: closed forms and single steps in place of a search, one file per method."""

"""Attacks on edited models, one file each: is a memory gone, or only hidden?"""

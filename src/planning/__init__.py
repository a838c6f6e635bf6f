"""Plans of a method's memory and passes, from a config alone: the method runs on fake tensors."""

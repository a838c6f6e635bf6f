"""Plans of a method's memory and passes, made from a config alone: the method itself runs on fake tensors."""

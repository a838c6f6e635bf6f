"""How much memory and how many passes a method will take, from a config alone: the method itself runs on fake tensors."""

"""How much a model memorizes and how good it is. Plain functions: a total, and the value per example."""

"""What runs on engines: the model cache, the warm process, the units, the guard."""

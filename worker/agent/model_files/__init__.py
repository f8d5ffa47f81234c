"""Headers of model files, read and checked. It never reads weights."""

"""How much memory a model will take, from its files' headers alone. It loads nothing."""

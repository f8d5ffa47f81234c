"""What the files of a model say: configuration, rope, stop tokens, vocabulary. It loads no
weights."""

"""The policy: a vision-language model, how its answers are sampled and how they are scored."""

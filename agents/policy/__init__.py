"""The policy: a vision-language model, how its answers are sampled and how they are scored.

- `model`: `VLMPolicy`, any transformers image-text-to-text model.
- `loading`: opening a checkpoint, and the frame that it records.
- `processing`: questions about images as the inputs of a model, and the check that they fit.
- `families`: what differs between families of models.
- `sampling`, `scoring`: `sample` groups of answers, and `score` given ones.
- `shared_prefix`: attention in which a group of answers shares its prompt.
- `constraint`: decoding that allows nothing but outlines.
- `checks`: checks on a policy before it is trained.
"""

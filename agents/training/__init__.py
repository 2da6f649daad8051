"""How weights are updated: engines, optimizers, distributed training, checkpoints."""

"""What the algorithms share: functions of tensors, the multiplier, the optimiser, the training loop, checkpoints."""

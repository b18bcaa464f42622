"""Networks: backbones, the split into trunk and tail, weights, checkpoints, device and memory."""

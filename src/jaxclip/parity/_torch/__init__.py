"""Recording a training run of torch: the one part of `parity` that imports torch."""

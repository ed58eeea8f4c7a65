"""Recording a run of JAX."""

"""torch.optim as Optax transformations, under torch's names and arguments."""

from jaxclip.optim import schedules as schedules

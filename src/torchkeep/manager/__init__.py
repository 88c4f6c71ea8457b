"""The training loop's keeper: `CheckpointManager`, and the rooms it is made of."""

from torchkeep.manager.manager import CheckpointManager as CheckpointManager

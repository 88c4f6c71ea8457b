"""Other people's checkpoint files, opened lazily and without running anything of them, each as a `Source`."""

from torchkeep.formats.opening import open_source as open_source

__all__ = ["open_source"]

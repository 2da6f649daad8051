"""The tiny policy that ships with the project: how it is built, and its weights."""

from dataclasses import dataclass


@dataclass(frozen=True)
class TinyConfig:
    """Shape of the embedded policy."""

    image_size: int = 96
    """Side of the square the image is resized to, in pixels."""
    patch_size: int = 12
    """Side of one image token, in pixels."""
    vision_width: int = 128
    """Hidden size of the vision tower."""
    vision_layers: int = 4
    """Layers of the vision tower."""
    width: int = 160
    """Hidden size of the decoder."""
    layers: int = 4
    """Layers of the decoder."""
    heads: int = 4
    """Attention heads of tower and decoder."""
    initializer_range: float = 0.05
    """Standard deviation of initial weights; .02 is too small for widths like these."""

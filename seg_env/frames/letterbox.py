"""Pictures that were scaled into a canvas and padded, and answers about the canvas."""

from __future__ import annotations

from dataclasses import dataclass

from seg_env.frames.plain import Frame, Points, check_size


@dataclass(frozen=True, slots=True)
class LetterboxFrame:
    """Answers about a picture that was scaled into a canvas and padded, mapped to the source image.

    The placement is that of `letterbox_geometry`, so code that draws the canvas and this frame
    agree to the pixel. Numbers that point at the padding are legal and map outside [0, 1].

    Raises:
        ValueError: if a size is not positive.
    """

    inner: Frame
    """Frame of the answers relative to the whole canvas."""
    source_size: tuple[int, int]
    """``(H, W)`` of the source image in pixels."""
    canvas_size: tuple[int, int]
    """``(H, W)`` of the canvas in pixels."""

    def __post_init__(self) -> None:
        """Reject empty pictures."""
        letterbox_geometry(self.source_size, self.canvas_size)

    @property
    def name(self) -> str:
        """For example ``"letterbox-640x480-in-224x224-unit"``, widths first."""
        (source_height, source_width), (height, width) = self.source_size, self.canvas_size
        placement = f"{source_width}x{source_height}-in-{width}x{height}"
        return f"letterbox-{placement}-{self.inner.name}"

    @property
    def content_box(self) -> tuple[int, int, int, int]:
        """``(left, top, width, height)`` of the image within the canvas, in canvas pixels."""
        return letterbox_geometry(self.source_size, self.canvas_size)

    @property
    def limits(self) -> tuple[float, float]:
        """Those of the inner frame: the padding may be pointed at."""
        return self.inner.limits

    @property
    def limit(self) -> float:
        """That of the inner frame."""
        return self.inner.limit

    @property
    def integer(self) -> bool:
        """As in the inner frame."""
        return self.inner.integer

    def to_unit(self, points: Points) -> Points:
        """Map numbers about the canvas to the unit frame of the source image."""
        left, top, width, height = self.content_box
        canvas_height, canvas_width = self.canvas_size
        pixels = self.inner.to_unit(points) * (canvas_width, canvas_height)
        return (pixels - (left, top)) / (width, height)

    def from_unit(self, points: Points) -> Points:
        """Map unit-frame points of the source image to numbers about the canvas."""
        left, top, width, height = self.content_box
        canvas_height, canvas_width = self.canvas_size
        pixels = points * (width, height) + (left, top)
        return self.inner.from_unit(pixels / (canvas_width, canvas_height))


def letterbox_geometry(
    source_size: tuple[int, int], canvas_size: tuple[int, int]
) -> tuple[int, int, int, int]:
    """Place an image centrally in a canvas, as large as it fits, in whole pixels.

    The side that limits the scale fills the canvas exactly; the other is rounded half up in integer
    arithmetic (so every platform agrees) and is at least one pixel.

    Args:
        source_size: ``(H, W)`` of the image in pixels.
        canvas_size: ``(H, W)`` of the canvas in pixels.

    Returns:
        ``(left, top, width, height)`` of the scaled image in canvas pixels.

    Raises:
        ValueError: if a side is not positive.
    """
    check_size("source_size", source_size)
    check_size("canvas_size", canvas_size)
    (source_height, source_width), (canvas_height, canvas_width) = source_size, canvas_size
    width, height = canvas_width, canvas_height
    if source_width * canvas_height >= source_height * canvas_width:
        height = max(1, _divide_half_up(source_height * canvas_width, source_width))
    else:
        width = max(1, _divide_half_up(source_width * canvas_height, source_height))
    return (canvas_width - width) // 2, (canvas_height - height) // 2, width, height


def _divide_half_up(numerator: int, denominator: int) -> int:
    return (2 * numerator + denominator) // (2 * denominator)

"""Crops one image at a time, in plain arithmetic."""

import math


def resized_crop(
    height: int, width: int, scale: tuple[float, float], ratio: tuple[float, float], draws: list[float]
) -> tuple[int, int, int, int]:
    """RandomResizedCrop's top, left, height, width from uniforms: ten areas, ten aspect ratios, row, column."""
    for area_draw, ratio_draw in zip(draws[:10], draws[10:20], strict=True):
        area = height * width * (scale[0] + area_draw * (scale[1] - scale[0]))
        aspect = math.exp(math.log(ratio[0]) + ratio_draw * (math.log(ratio[1]) - math.log(ratio[0])))
        w, h = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < w <= width and 0 < h <= height:
            return int(draws[20] * (height - h + 1)), int(draws[21] * (width - w + 1)), h, w
    h, w = height, width
    if width / height < ratio[0]:
        h = max(1, round(width / ratio[0]))
    elif width / height > ratio[1]:
        w = max(1, round(height * ratio[1]))
    return (height - h) // 2, (width - w) // 2, h, w


def fitting_crop(
    height: int, width: int, scale: tuple[float, float], ratio: tuple[float, float], draws: list[float]
) -> tuple[int, int, int, int]:
    """PASSL's RandCropImage from uniforms: aspect ratio, area, row, column. Top, left, height, width."""
    stretch = math.sqrt(ratio[0] + draws[0] * (ratio[1] - ratio[0]))
    fits = min(width / height / stretch**2, height / width * stretch**2)
    smallest, largest = min(scale[0], fits), min(scale[1], fits)
    side = math.sqrt(width * height * (smallest + draws[1] * (largest - smallest)))
    w, h = int(side * stretch), int(side / stretch)
    return int(draws[2] * (height - h + 1)), int(draws[3] * (width - w + 1)), h, w

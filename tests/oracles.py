"""The definitions of color and scores, written down once more and independently of the package."""

import numpy as np
from scipy.ndimage import gaussian_filter

_XYZ_FROM_RGB = np.array(
    [[0.412453, 0.357580, 0.180423], [0.212671, 0.715160, 0.072169], [0.019334, 0.119193, 0.950227]]
)
_WHITE = np.array([0.95047, 1.0, 1.08883])  # D65, 2 degrees


def lab(rgb: np.ndarray) -> np.ndarray:
    """(...,3) uint8 sRGB -> Lab, CIE 1976 with IEC 61966-2-1's curve."""
    value = rgb / 255
    linear = np.where(value > 0.04045, ((value + 0.055) / 1.055) ** 2.4, value / 12.92)
    ratio = linear @ _XYZ_FROM_RGB.T / _WHITE
    x, y, z = np.moveaxis(np.where(ratio > (6 / 29) ** 3, np.cbrt(ratio), ratio * 841 / 108 + 4 / 29), -1, 0)
    return np.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)], axis=-1)


def psnr(original: np.ndarray, colored: np.ndarray) -> float:
    """Peak signal to noise ratio in dB of 8-bit pictures, over all channels."""
    return float(10 * np.log10(255**2 / ((original.astype(float) - colored.astype(float)) ** 2).mean()))


def ssim(original: np.ndarray, colored: np.ndarray) -> float:
    """Wang et al. 2004 with population covariances, the mean over channels and all pixels but skimage's border of 5."""

    def blur(channel: np.ndarray) -> np.ndarray:
        return gaussian_filter(channel, sigma=1.5, truncate=3.5)

    values = []
    for x, y in zip(np.moveaxis(original.astype(float), -1, 0), np.moveaxis(colored.astype(float), -1, 0)):
        mean_x, mean_y = blur(x), blur(y)
        var_x, var_y, cov = blur(x * x) - mean_x**2, blur(y * y) - mean_y**2, blur(x * y) - mean_x * mean_y
        c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
        similar = (2 * mean_x * mean_y + c1) * (2 * cov + c2)
        index = similar / ((mean_x**2 + mean_y**2 + c1) * (var_x + var_y + c2))
        values.append(index[5:-5, 5:-5].mean())
    return float(np.mean(values))


def colorfulness(rgb: np.ndarray, absolute: bool = False) -> float:
    """Hasler and Suesstrunk 2003, M3, with signed or absolute opponents."""
    red, green, blue = (rgb[..., channel].astype(float) for channel in range(3))
    opponents = red - green, 0.5 * (red + green) - blue
    opponents = tuple(map(np.abs, opponents)) if absolute else opponents
    spread = np.sqrt(sum(np.mean(o**2) - np.mean(o) ** 2 for o in opponents))
    return float(spread + 0.3 * np.sqrt(sum(np.mean(o) ** 2 for o in opponents)))


def ciede2000(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Color difference of (...,3) Lab, after Sharma, Wu and Dalal 2005."""
    (l1, a1, b1), (l2, a2, b2) = np.moveaxis(first, -1, 0), np.moveaxis(second, -1, 0)
    mean_chroma = (np.hypot(a1, b1) + np.hypot(a2, b2)) / 2
    stretch = 1.5 - 0.5 * np.sqrt(mean_chroma**7 / (mean_chroma**7 + 25.0**7))
    a1, a2 = a1 * stretch, a2 * stretch
    c1, c2 = np.hypot(a1, b1), np.hypot(a2, b2)
    h1, h2 = np.degrees(np.arctan2(b1, a1)) % 360, np.degrees(np.arctan2(b2, a2)) % 360
    colored = c1 * c2 > 0
    turn = np.where(colored, (h2 - h1 + 180) % 360 - 180, 0)
    middle = np.where(colored, h1 + turn / 2, h1 + h2)
    lightness, chroma = (l1 + l2) / 2, (c1 + c2) / 2
    weight = sum(
        factor * np.cos(np.radians(multiple * middle - shift))
        for factor, multiple, shift in ((-0.17, 1, 30), (0.24, 2, 0), (0.32, 3, -6), (-0.20, 4, 63))
    )
    s_l = 1 + 0.015 * (lightness - 50) ** 2 / np.sqrt(20 + (lightness - 50) ** 2)
    s_c, s_h = 1 + 0.045 * chroma, 1 + 0.015 * chroma * (1 + weight)
    bend = 60 * np.exp(-((((middle % 360) - 275) / 25) ** 2))
    rotation = -2 * np.sqrt(chroma**7 / (chroma**7 + 25.0**7)) * np.sin(np.radians(bend))
    d_l, d_c = (l2 - l1) / s_l, (c2 - c1) / s_c
    d_h = 2 * np.sqrt(c1 * c2) * np.sin(np.radians(turn / 2)) / s_h
    return np.sqrt(d_l**2 + d_c**2 + d_h**2 + rotation * d_c * d_h)

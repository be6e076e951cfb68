"""All conversions between sRGB and Lab. Lab is that of scikit-image: sRGB, D65, 2 degree observer.

Formulas: IEC 61966-2-1 (the sRGB curve and primaries) and CIE 15 (Lab, 1976). Curves are looked up in tables, which
are as fast on processors without vectorized powers.
"""

import numpy as np

_XYZ_FROM_RGB = np.array(
    [[0.412453, 0.357580, 0.180423], [0.212671, 0.715160, 0.072169], [0.019334, 0.119193, 0.950227]]
)
_WHITE = np.array([0.95047, 1.0, 1.08883])
_STEPS = 1 << 16  # entries of a table over 0..1
_LINEAR_BELOW = np.float32(6 / 29)  # Lab's f is a straight line below this value
_SLOPE, _SHIFT = np.float32(1 / 7.787), np.float32(16 / 116)
_EPSILON = np.float32(1e-9)
# Colors at most this far outside sRGB, in linear light, count as inside: stored Lab is rounded to 1/256.
_TOLERANCE = np.float32(1e-4)


def _srgb_to_linear(values: np.ndarray) -> np.ndarray:
    """sRGB in 0..1 -> linear light in 0..1."""
    return np.where(values > 0.04045, ((values + 0.055) / 1.055) ** 2.4, values / 12.92)


def _linear_to_srgb(values: np.ndarray) -> np.ndarray:
    """Linear light in 0..1 -> sRGB in 0..1."""
    return np.where(values > 0.0031308, 1.055 * values ** (1 / 2.4) - 0.055, values * 12.92)


_UNIT = np.arange(_STEPS) / (_STEPS - 1)
_GRAY_Y = _srgb_to_linear(_UNIT).astype(np.float32)  # 16-bit gray -> Y
# Rows: what 8 bits of red, green and blue add to Y.
_RGB_Y = (_XYZ_FROM_RGB[1, :, None] * _srgb_to_linear(np.arange(256) / 255)).astype(np.float32)
_F = np.where(_UNIT > 0.008856, np.cbrt(_UNIT), 7.787 * _UNIT + 16 / 116).astype(np.float32)  # Y -> f, L* = 116 f - 16
_SRGB = np.rint(_linear_to_srgb(_UNIT) * 255).astype(np.uint8)  # linear light -> 8-bit sRGB
# (X/Xn, Y, Z/Zn) -> linear red, green and blue minus Y.
_RGB_MINUS_Y = (np.linalg.inv(_XYZ_FROM_RGB) * _WHITE - [0, 1, 0]).astype(np.float32)


def srgb_to_lab(rgb: np.ndarray) -> np.ndarray:
    """(H,W,3) uint8 sRGB -> (H,W,3) float64 Lab."""
    from skimage.color import rgb2lab  # takes 0.3 s to import, which colorize.py does not need

    return rgb2lab(rgb)


def srgb_to_y(pixels: np.ndarray) -> np.ndarray:
    """(H,W,3) or (H,W) uint8, or (H,W) uint16, sRGB -> relative luminance Y (H,W) float32 in 0..1."""
    if pixels.dtype == np.uint16:
        return _GRAY_Y.take(pixels)
    if pixels.ndim == 2:
        return _GRAY_Y[::257].take(pixels)
    y = _RGB_Y[0].take(pixels[..., 0])
    y += _RGB_Y[1].take(pixels[..., 1])
    y += _RGB_Y[2].take(pixels[..., 2])
    return y


def srgb_to_lightness(pixels: np.ndarray) -> np.ndarray:
    """The same pixels as `srgb_to_y` takes -> L*/100 (H,W) float32 in 0..1, the input of the networks."""
    return _lab_f(srgb_to_y(pixels)) * np.float32(1.16) - np.float32(0.16)


def lab_to_srgb(lab: np.ndarray) -> np.ndarray:
    """Lab (3,H,W) -> (H,W,3) uint8 sRGB. L* is kept; see `yab_to_srgb` for colors outside sRGB."""
    f = (np.asarray(lab[0], np.float64) + 16) / 116
    y = np.where(f > 6 / 29, f**3, (f - 16 / 116) / 7.787).clip(0, 1).astype(np.float32)
    return yab_to_srgb(y, np.array(lab[1], np.float32), np.array(lab[2], np.float32))


def lightness_to_gray(lightness: np.ndarray) -> np.ndarray:
    """L* (H,W) in 0..100 -> (H,W) uint8: the gray of that L*."""
    zeros = np.zeros_like(lightness)
    return lab_to_srgb(np.stack([lightness, zeros, zeros]))[..., 0]


def yab_to_srgb(y: np.ndarray, a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Y (H,W) in 0..1, a and b (H,W) in Lab units, float32 -> (H,W,3) uint8 sRGB. Overwrites its arguments.

    L* of the result is that of Y up to rounding to 8 bits, which is at most 0.28. A color outside sRGB is desaturated:
    moved toward the gray of the same Y, on a straight line in linear light, until it is inside. Clipping red, green or
    blue instead would change L*.
    """
    f = _lab_f(y)
    a *= np.float32(1 / 500)
    b *= np.float32(1 / 200)
    a += f
    np.subtract(f, b, out=b)
    x, z = _inverse_lab_f(a), _inverse_lab_f(b)
    offsets = [m[0] * x + m[1] * y + m[2] * z for m in _RGB_MINUS_Y]
    largest = np.maximum(np.maximum(offsets[0], offsets[1]), offsets[2])
    smallest = np.minimum(np.minimum(offsets[0], offsets[1]), offsets[2])
    inside = np.minimum(1 - y - largest, y + smallest) > -_TOLERANCE
    # The fraction of the way from gray to the color that stays below 1 and above 0.
    np.divide(1 - y, np.maximum(largest, _EPSILON, out=largest), out=largest)
    np.divide(-y, np.minimum(smallest, -_EPSILON, out=smallest), out=smallest)
    fraction = np.minimum(np.minimum(largest, smallest, out=largest), 1, out=largest)
    np.copyto(fraction, 1, where=inside)
    fraction *= _STEPS - 1
    y *= _STEPS - 1
    y += np.float32(0.5)
    rgb = np.empty((*y.shape, 3), np.uint8)
    for channel, values in enumerate(offsets):
        values *= fraction
        values += y
        rgb[..., channel] = _SRGB.take(values.astype(np.int32), mode="clip")
    return rgb


def _lab_f(y: np.ndarray) -> np.ndarray:
    """Y in 0..1 -> Lab's f, so that L* = 116 f - 16."""
    return _F.take((y * (_STEPS - 1) + np.float32(0.5)).astype(np.int32), mode="clip")


def _inverse_lab_f(f: np.ndarray) -> np.ndarray:
    """The inverse of f, for X/Xn and Z/Zn. Overwrites its argument."""
    linear = f < _LINEAR_BELOW
    cubes = f * f
    cubes *= f
    f -= _SHIFT
    f *= _SLOPE
    np.copyto(cubes, f, where=linear)
    return cubes

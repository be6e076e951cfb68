"""How close a colored picture comes to the photograph, and how colorful both are."""

import numpy as np
from skimage.color import deltaE_ciede2000
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from deepcolor.common.color import srgb_to_lab


def scores(original: np.ndarray, colored: np.ndarray) -> dict[str, float]:
    """PSNR (dB), SSIM, mean CIEDE2000 and colorfulness of two (H,W,3) uint8 sRGB pictures, as they are written.

    PSNR is over all three channels. SSIM is Wang et al. 2004: a Gaussian window of sigma 1.5, population
    covariances. Both without a border crop. Equal pictures have an infinite PSNR.
    """
    true_lab, lab = srgb_to_lab(original), srgb_to_lab(colored)
    with np.errstate(divide="ignore"):
        psnr = peak_signal_noise_ratio(original, colored, data_range=255)
    return {
        "psnr": float(psnr),
        "ssim": float(
            structural_similarity(
                original,
                colored,
                gaussian_weights=True,
                sigma=1.5,
                use_sample_covariance=False,
                data_range=255,
                channel_axis=-1,
            )
        ),
        "delta_e": float(deltaE_ciede2000(true_lab, lab).mean()),
        "colorfulness": colorfulness(colored),
        "colorfulness_true": colorfulness(original),
    }


# Below this share of the true chroma, or of its variety, a network has given up: no colors, or one for everything.
COLLAPSED = 0.2
# The colors of middle lightness around the a-b plane, and the angle in degrees up to which each is called so.
_HUES = {20: "red", 85: "brown", 125: "olive", 190: "green", 230: "teal", 300: "blue", 340: "purple", 360: "red"}


def chroma(true_ab: np.ndarray, ab: np.ndarray) -> dict[str, float]:
    """What `color_use` needs of one image, from its true and its predicted ab (2,H,W) in Lab units."""
    found = {}
    for suffix, values in (("_true", true_ab), ("", ab)):
        a, b = values
        found |= {f"chroma{suffix}": np.hypot(a, b).mean(), f"square{suffix}": (values**2).sum(axis=0).mean()}
        found |= {f"a{suffix}": a.mean(), f"b{suffix}": b.mean()}
    return found


def color_use(means: dict[str, float]) -> dict[str, float | str]:
    """How much of the colors there are a network uses, from the means over all images of what `chroma` gives.

    `chroma_ratio`: mean predicted over mean true chroma, sqrt(a^2 + b^2). `variety_ratio`: the same for the standard
    deviation of ab over all pixels of all images. `verdict`: "colored", or to which color it collapsed.
    """

    def deviation(suffix: str) -> float:
        variance = means[f"square{suffix}"] - means[f"a{suffix}"] ** 2 - means[f"b{suffix}"] ** 2
        return float(np.sqrt(max(variance, 0)))

    chroma_ratio = means["chroma"] / max(means["chroma_true"], 1e-9)
    variety_ratio = deviation("") / max(deviation("_true"), 1e-9)
    verdict = "colored"
    if chroma_ratio < COLLAPSED:
        verdict = "collapsed to gray"
    elif variety_ratio < COLLAPSED:
        angle = np.degrees(np.arctan2(means["b"], means["a"])) % 360
        verdict = f"collapsed to {next(name for limit, name in _HUES.items() if angle <= limit)}"
    return {"chroma_ratio": chroma_ratio, "variety_ratio": variety_ratio, "verdict": verdict}


def mean_scores(collected: list[dict[str, float]]) -> dict[str, float]:
    """Each score, averaged over the images."""
    return {key: float(np.mean([scores[key] for scores in collected])) for key in collected[0]}


def colorfulness(rgb: np.ndarray) -> float:
    """Hasler and Suesstrunk's M3 (2003) of an (H,W,3) uint8 sRGB picture, on the scale 0..255; gray is 0.

    rg = R - G, yb = (R + G) / 2 - B, both signed:
    M3 = sqrt(std(rg)^2 + std(yb)^2) + 0.3 sqrt(mean(rg)^2 + mean(yb)^2).
    """
    red, green, blue = np.moveaxis(rgb.astype(np.float64), -1, 0)
    rg, yb = red - green, (red + green) / 2 - blue
    return float(np.hypot(rg.std(), yb.std()) + 0.3 * np.hypot(rg.mean(), yb.mean()))

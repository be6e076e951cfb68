"""Scores of a colored image against the original, and how much color a Colorizer uses."""

import numpy as np

from deepcolor.common.color import srgb_to_lab

# A Colorizer has collapsed if its mean chroma, or its spread of colors, is below this fraction of the original's.
COLLAPSE_RATIO = 0.2
# Hue angle in the a-b plane, in degrees -> name of the colors up to this angle.
_HUE_NAMES = {20: "red", 85: "brown", 125: "olive", 190: "green", 230: "teal", 300: "blue", 340: "purple", 360: "red"}


def image_scores(original: np.ndarray, colored: np.ndarray) -> dict[str, float]:
    """Returns PSNR (dB), SSIM, mean CIEDE2000 and colorfulness scores of a pair of (H,W,3) uint8 sRGB images.

    The suffix "_true" stands for the original, "_abs" for `colorfulness(absolute=True)`. delta_colorfulness is the
    difference of the latter, colored minus original: in published tables, the absolute value of its mean is ΔCF.

    No border is cropped. PSNR is over all three channels, and infinite for equal images. SSIM is that of Wang et al.
    2004: a Gaussian window with sigma 1.5, and population covariances.
    """
    from skimage.color import deltaE_ciede2000
    from skimage.metrics import peak_signal_noise_ratio, structural_similarity  # imports scipy.stats, which takes 1 s

    with np.errstate(divide="ignore"):
        psnr = peak_signal_noise_ratio(original, colored, data_range=255)
    ssim = structural_similarity(
        original,
        colored,
        gaussian_weights=True,
        sigma=1.5,
        use_sample_covariance=False,
        data_range=255,
        channel_axis=-1,
    )
    literature, literature_true = (colorfulness(image, absolute=True) for image in (colored, original))
    return {
        "psnr": float(psnr),
        "ssim": float(ssim),
        "delta_e": float(deltaE_ciede2000(srgb_to_lab(original), srgb_to_lab(colored)).mean()),
        "colorfulness": colorfulness(colored),
        "colorfulness_true": colorfulness(original),
        "colorfulness_abs": literature,
        "colorfulness_abs_true": literature_true,
        "delta_colorfulness": literature - literature_true,
    }


def colorfulness(rgb: np.ndarray, absolute: bool = False) -> float:
    """Returns Hasler and Suesstrunk's M3 (2003) of an (H,W,3) uint8 sRGB image. Gray is 0.

    With rg = R - G and yb = (R + G) / 2 - B, both signed and in 0..255 units:
    M3 = sqrt(std(rg)^2 + std(yb)^2) + 0.3 sqrt(mean(rg)^2 + mean(yb)^2).

    With `absolute`, rg and yb are the absolute values of these differences, as in the evaluation of DDColor and CT2.
    """
    red, green, blue = np.moveaxis(rgb.astype(np.float64), -1, 0)
    rg, yb = red - green, (red + green) / 2 - blue
    if absolute:
        rg, yb = np.abs(rg), np.abs(yb)
    return float(np.hypot(rg.std(), yb.std()) + 0.3 * np.hypot(rg.mean(), yb.mean()))


def chroma_statistics(true_ab: np.ndarray, ab: np.ndarray) -> dict[str, float]:
    """Returns the statistics of one image that `color_verdict` needs, from its true and predicted ab.

    Both are (2,H,W) in Lab units. Chroma is sqrt(a^2 + b^2). The keys of the true ab end in "_true".
    """
    statistics = {}
    for suffix, (a, b) in (("_true", true_ab), ("", ab)):
        chroma = np.hypot(a, b)
        statistics[f"chroma{suffix}"] = chroma.mean()
        statistics[f"squared_chroma{suffix}"] = (chroma**2).mean()
        statistics[f"a{suffix}"] = a.mean()
        statistics[f"b{suffix}"] = b.mean()
    return statistics


def color_verdict(means: dict[str, float]) -> dict[str, float | str]:
    """Returns how much color a Colorizer uses, from the means of `chroma_statistics` over all images.

    Returns:
        chroma_ratio: mean predicted chroma / mean true chroma.
        variety_ratio: the same ratio for the standard deviation of ab over all pixels of all images.
        verdict: "colored", "collapsed to gray", or "collapsed to" the name of a color.
    """

    def deviation(suffix: str) -> float:
        variance = means[f"squared_chroma{suffix}"] - means[f"a{suffix}"] ** 2 - means[f"b{suffix}"] ** 2
        return float(np.sqrt(max(variance, 0)))

    chroma_ratio = means["chroma"] / max(means["chroma_true"], 1e-9)
    variety_ratio = deviation("") / max(deviation("_true"), 1e-9)
    verdict = "colored"
    if chroma_ratio < COLLAPSE_RATIO:
        verdict = "collapsed to gray"
    elif variety_ratio < COLLAPSE_RATIO:
        hue = np.degrees(np.arctan2(means["b"], means["a"])) % 360
        verdict = f"collapsed to {next(name for limit, name in _HUE_NAMES.items() if hue <= limit)}"
    return {"chroma_ratio": chroma_ratio, "variety_ratio": variety_ratio, "verdict": verdict}


def mean_scores(scores: list[dict[str, float]]) -> dict[str, float]:
    """Returns the mean of every score over the images."""
    return {key: float(np.mean([each[key] for each in scores])) for key in scores[0]}

"""How close a coloured picture comes to the photograph, and how colourful both are."""

import numpy as np
from skimage.color import deltaE_ciede2000, rgb2lab
from skimage.metrics import peak_signal_noise_ratio, structural_similarity


def scores(original: np.ndarray, coloured: np.ndarray) -> dict[str, float]:
    """PSNR (dB), SSIM, mean CIEDE2000 and colourfulness of two (H,W,3) uint8 sRGB pictures, as they are written.

    PSNR is over all three channels. SSIM is Wang et al. 2004: a Gaussian window of sigma 1.5, population
    covariances. Both without a border crop. Equal pictures have an infinite PSNR.
    """
    true_lab, lab = rgb2lab(original), rgb2lab(coloured)
    with np.errstate(divide="ignore"):
        psnr = peak_signal_noise_ratio(original, coloured, data_range=255)
    return {
        "psnr": float(psnr),
        "ssim": float(
            structural_similarity(
                original,
                coloured,
                gaussian_weights=True,
                sigma=1.5,
                use_sample_covariance=False,
                data_range=255,
                channel_axis=-1,
            )
        ),
        "delta_e": float(deltaE_ciede2000(true_lab, lab).mean()),
        "colourfulness": colourfulness(coloured),
        "colourfulness_true": colourfulness(original),
    }


def mean_scores(collected: list[dict[str, float]]) -> dict[str, float]:
    """Each score, averaged over the images."""
    return {key: float(np.mean([scores[key] for scores in collected])) for key in collected[0]}


def colourfulness(rgb: np.ndarray) -> float:
    """Hasler and Suesstrunk's M3 (2003) of an (H,W,3) uint8 sRGB picture, on the scale 0..255; grey is 0.

    rg = R - G, yb = (R + G) / 2 - B, both signed:
    M3 = sqrt(std(rg)^2 + std(yb)^2) + 0.3 sqrt(mean(rg)^2 + mean(yb)^2).
    """
    red, green, blue = np.moveaxis(rgb.astype(np.float64), -1, 0)
    rg, yb = red - green, (red + green) / 2 - blue
    return float(np.hypot(rg.std(), yb.std()) + 0.3 * np.hypot(rg.mean(), yb.mean()))

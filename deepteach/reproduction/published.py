"""What the paper reports: test errors in % of Fan et al., arXiv 2007.04649 v1.

Tables 1 to 7, section 4.3 ("deeper interactions") and Appendix B, by (data, student) or
(data, rate) and row. They come without seeds, spread, or the choice of the epoch.
"""

from __future__ import annotations

OURS = "Ours"

PUBLISHED_1: dict[tuple[str, str], dict[str, float]] = {
    ("CIFAR-10", "resnet32"): {"Baseline": 7.22, "L2T-data": 7.16, "L2T-loss": 6.95,
                               "Focal": 6.60, "SPL": 11.48, OURS: 6.20},
    ("CIFAR-10", "resnet110"): {"Baseline": 6.38, "Focal": 6.19, "SPL": 11.06, OURS: 5.65},
    ("CIFAR-10", "wrn-28-10"): {"Baseline": 4.27, "Focal": 4.57, "SPL": 4.25, OURS: 3.72},
    ("CIFAR-100", "resnet32"): {"Baseline": 29.57, "L2T-data": 29.54, "L2T-loss": 29.25,
                                "Focal": 28.85, "SPL": 29.98, OURS: 28.65},
    ("CIFAR-100", "resnet110"): {"Baseline": 27.69, "Focal": 26.55, "SPL": 27.91, OURS: 26.02},
    ("CIFAR-100", "wrn-28-10"): {"Baseline": 20.49, "Focal": 19.86, "SPL": 20.56, OURS: 19.38},
}  # fmt: skip
PUBLISHED_2 = {"I0.M0": 6.20, "I0": 6.34, "M0": 6.50, "M1": 6.54, "M0.M1": 6.50, "I0.M0.M1": 6.30}
PUBLISHED_3 = (6.20, 6.22, 6.31, 6.21)
PUBLISHED_4 = (6.20, 6.48, 6.59)
PUBLISHED_5: dict[tuple[str, float], dict[str, float]] = {
    ("CIFAR-10", 0.4): {"Baseline": 31.93, "MentorNet": 12.67, "Meta-Weight-Net": 10.73,
                        OURS: 10.29},
    ("CIFAR-10", 0.6): {"Baseline": 46.88, "MentorNet": 17.20, "Meta-Weight-Net": 15.93,
                        OURS: 15.37},
    ("CIFAR-100", 0.4): {"Baseline": 48.89, "MentorNet": 38.61, "Meta-Weight-Net": 32.27,
                         OURS: 31.36},
    ("CIFAR-100", 0.6): {"Baseline": 69.08, "MentorNet": 63.13, "Meta-Weight-Net": 41.25,
                         OURS: 40.62},
}  # fmt: skip
PUBLISHED_6: dict[tuple[str, float], dict[str, float]] = {
    ("CIFAR-10", 0.2): {"Baseline": 23.17, "MentorNet": 13.64, "Meta-Weight-Net": 9.67,
                        OURS: 8.95},
    ("CIFAR-10", 0.4): {"Baseline": 29.23, "MentorNet": 18.24, "Meta-Weight-Net": 12.46,
                        OURS: 11.29},
    ("CIFAR-100", 0.2): {"Baseline": 49.14, "MentorNet": 38.03, "Meta-Weight-Net": 35.78,
                         OURS: 33.92},
    ("CIFAR-100", 0.4): {"Baseline": 56.99, "MentorNet": 47.34, "Meta-Weight-Net": 41.36,
                         OURS: 39.49},
}  # fmt: skip
PUBLISHED_7 = {(1, 1): 6.56, (20, 2): 6.20, (20, 5): 6.41, (100, 2): 6.30, (100, 5): 6.24}
PUBLISHED_BASELINE = 7.22
PUBLISHED_DEEPER = 6.08
PUBLISHED_TRANSFER = {"other data": 92.45, "other student": 57.97}

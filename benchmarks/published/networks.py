"""What the benchmarks here time beside the published figures' network and widths."""

from __future__ import annotations

from ddsm_ext.models.adm import ADMConfig

# Guided diffusion's 64x64 class-conditional network, of what the CIFAR-10 U-Net has not: norms with
# a scale and a shift an image, halved and enlarged images, labels, several heads.
ADM_IMAGENET64 = ADMConfig(image_size=64, num_classes=1000)
# 60 and 120 channels, which fill no block of 16 or 32: what a kernel pays for any width.
ODD_WIDTH = 0.46875

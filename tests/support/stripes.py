"""Images of a few pixels that a small network learns in a second, for the tests of certified training."""

import torch

from warpup.apps.certify import CertifiedTraining, Images

QUICK = CertifiedTraining(eps=0.1, epochs=6, batch_size=16, start=1, warmup=2, lr=5e-3, points=3, save_every=2)


def stripes(count=96, seed=0, size=4) -> Images:
    """Images of one bright row or column among noise; the class is which row or column it is."""
    generator = torch.Generator().manual_seed(seed)
    y = torch.randint(0, 4, (count,), generator=generator)
    x = 0.3 * torch.rand(count, 1, size, size, generator=generator)
    for image, label in zip(x, y.tolist(), strict=True):
        (image[0, label % 2 * 2] if label < 2 else image[0, :, label % 2 * 2]).add_(0.7)
    return Images("stripes", x[32:], y[32:], x[:32], y[:32])

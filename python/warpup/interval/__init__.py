"""Interval bound propagation through ordinary modules, and certified training with a short warm-up.

center, radius = bound(module, x, eps * torch.ones_like(x))   # every output over the box
verified = (margins(module, x, radius, labels) > 0).all(1)    # no input in the box changes the class
loss = margin_loss(module, x, radius, labels, clean=x)        # trains that
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)

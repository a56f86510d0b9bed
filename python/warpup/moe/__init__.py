"""Mixtures of experts: routing, sorted copies of tokens, grouped products, balance; a layer and its metrics."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)

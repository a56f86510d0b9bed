"""Schedules on reflection tokens: which tokens, which wave, and the device tables that follow requests under them;
budgets of thinking on the same tables."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)

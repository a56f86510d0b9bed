"""Bounds of whole modules: the walk over a network, its layers' rules, and the losses that train on the bounds."""

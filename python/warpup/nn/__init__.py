"""Modules on top of the operators."""

"""Numbers that options are held against. Nothing here imports torch, as a config is checked before that is loaded."""

DIVISORS = (2.0**-63, 2.0**63)  # what float32 numbers are divided by, squared as well: csrc/core/option_check.h
LARGEST = (2.0 - 2.0**-23) * 2.0**127  # the largest float32

"""Writes docs/conformance.md, and prints it."""

from bench.conformance import PAGE, page

PAGE.write_text(page())
print(PAGE.read_text())

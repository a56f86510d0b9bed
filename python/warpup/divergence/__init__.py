"""Divergences between a student's and a teacher's next-token distributions."""

"""`warpup demo`: the two-stage effect on Knights & Knaves, from scratch, on a CPU.

Four arms, measured on held-out puzzles (no abstract puzzle of theirs is trained on):
    base             a model that knows the format alone (supervised on random answers)
    base + RLVR      reinforced from there on at most 100 puzzles
    warm-up          supervised on long chains of thought
    warm-up + RLVR   reinforced from there on the same puzzles
Two chains of two stages make them, so a seed is two recipes, each in its own folder and each resumable.

`settings.py` sizes and options, `puzzles.py` the data, `chain.py` the training, `command.py` the command, `report.py`
what it shows.
"""

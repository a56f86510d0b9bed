"""`warpup doctor`: a model, its tokenizer, data, reward and settings, tried before a run is paid for.

Every check is a function in one of these files that looks at a `Patient` and yields what came out. It tries the thing
itself, on the user's own model and rows, where a good engineer would trust the documentation; `findings.py` has what
they share.
"""

"""Log-probabilities of tokens, from logits and from hidden states."""

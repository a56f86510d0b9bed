"""Policy-gradient and preference losses on log-probabilities."""

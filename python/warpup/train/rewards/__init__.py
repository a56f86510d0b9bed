"""Calling rewards: by name, several with weights, in processes with a time limit. Ready ones: `warpup.rewards`."""

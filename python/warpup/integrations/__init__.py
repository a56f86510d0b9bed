"""Thin adapters to other trainers, each imported on demand: `from warpup.integrations.trl import GRPOTrainer`."""

"""A continual learner small enough for tests: certificates hold for it as for a large one."""

from warpup.apps.continual.settings import Settings

SHORT = Settings(hidden=16, steps=60, scale_steps=80)

"""What stands on the trainer and the operators: `demo` (the two-stage effect from scratch), `certify` (classifiers with
proven answers), `continual` (tasks one after the other with certificates), `compare` (decodings side by side).

Each has a folder with its command; `_report.py`, `_charts.py` and `_jobs.py` are shared."""

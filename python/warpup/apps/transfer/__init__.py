"""`warpup transfer`: what does a warm-up on Knights & Knaves carry over to another domain, in a pretrained model?

Seven arms, each trained by `warpup train` on a config of its own, are measured on held-out problems of three domains.

`settings.py` options, sizes and arms, `domains.py` what is asked and what an answer is worth, `arms.py` the data,
training and measuring of the arms, `command.py` the command, `report.py` what it shows. docs/transfer.md explains all.
"""

"""warpup: fused operators and a lean trainer for two-stage post-training.

The operators, and the objectives composed from them, are functions of this module. Each family has a package of its
own with what stands on its operators: `warpup.advantage` the published estimators by name, `warpup.moe` a layer and its
metrics, `warpup.interval` bounds of whole modules, `warpup.reflection` schedules; `warpup.train` is the trainer,
`warpup.data` puzzles and loaders, `warpup.arrays` the kernels for arrays of any framework, without torch.

A name is imported when it is first used, so `import warpup` takes a few milliseconds. The list of names is the stub
beside this file, `__init__.pyi`: one list for type checkers and for this module.
"""

import lazy_loader

from warpup._cpu import load_kernels

load_kernels()  # before any of the libraries that need them
__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)

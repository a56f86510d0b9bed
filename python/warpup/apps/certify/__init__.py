"""Certified training of image classifiers, and the command `warpup certify`.

settings = CertifiedTraining(eps=0.1)
numbers = settings.fit(network, load_images("digits"), "runs/digits")   # clean and verified error, a curve over eps

`training.py` the settings and the loop, `measurement.py` the errors, `images.py` the data, `arms.py` presets and the
ablation, `command.py` the command, `report.py` what it shows, `export.py` ONNX and VNN-LIB files for other verifiers.
"""

from .export import export_questions
from .images import Images, load_images
from .training import CertifiedTraining

__all__ = ["CertifiedTraining", "Images", "export_questions", "load_images"]

"""RNA sequences in; reactivity, base pairs with pseudoknots, and 3D coordinates out, each with a confidence.

>>> __version__.count(".")
2
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ribonanzamamba.prediction.predict import Predictor
    from ribonanzamamba.prediction.template_files import Templates

__all__ = ["__version__", "load"]

__version__ = "0.1.0"


def load(
    path_or_preset: str | Path | None = None,
    device: str = "auto",
    prior: str = "auto",
    templates: Templates | None = None,
) -> Predictor:
    """Predictor from a checkpoint folder or the name of a preset; None: the weights that come with the package.

    `prior`: pair probabilities of ViennaRNA as an input, for weights that take it: "auto" (if it is installed),
    "vienna" or "none". `templates`: coordinate tables, mmCIF or PDB files, or folders of these, of known structures
    that 3D models may be copied from; needs biotite.

    Raises:
        ValueError: weights that do not fit their description, a device that is not there, a prior for weights that
            take none, or templates that cannot be used.
        OSError: no such checkpoint or preset, or it cannot be read.
        ImportError: `prior` is "vienna", and ViennaRNA is not installed, or there are templates, and biotite is not.
    """
    # PyTorch is imported when it is needed: `ribonanzamamba --help` does without
    from ribonanzamamba.prediction import predict

    return predict.load(path_or_preset, device, prior, templates)

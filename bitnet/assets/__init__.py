"""The model that comes with the package: a checkpoint in the Hugging Face format, whose README.md is its model card."""

import os

__all__ = ["BUNDLED"]

BUNDLED = os.path.dirname(os.path.abspath(__file__))
"""The folder of the checkpoint."""

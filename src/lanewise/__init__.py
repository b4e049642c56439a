"""lanewise: train hybrid language models, and know which features move step time."""

__version__ = "0.1.0"

"""infalign: inference-aware alignment of language models (InfAlign, arXiv 2412.19792)."""

__version__ = "0.1.0"

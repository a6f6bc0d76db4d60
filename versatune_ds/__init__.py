"""Fine-tune a language model on several domains at once, with a data mixture that moves while it trains."""

__version__ = "0.1.0"

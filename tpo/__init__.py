"""What the stages stand on: records, config, store, the method's arithmetic, the engines, the miniature world."""

__version__ = "0.1.0"

"""The basis of the stages: records, config, storage, the method's arithmetic, the engines, the miniature world."""

__version__ = "0.1.0"

"""Tuner: bring a dataset, see what is learned, tune with QLoRA, talk to the result, publish it."""

__version__ = "0.1.0"

"""The claim of the design, one part of the model at a time: python -m benchmarks.ladder."""

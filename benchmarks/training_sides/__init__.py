"""The parts of `benchmarks/training.py`: what each side runs, on which backbone and data, and how it is timed."""

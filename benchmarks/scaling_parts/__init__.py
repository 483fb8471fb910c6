"""The parts of `benchmarks/scaling.py`: made-up shops of any size, and one measured run on one of them."""

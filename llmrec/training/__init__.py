"""Training: arguments, examples, negatives, collator, trainer, and the job behind `train.py`."""

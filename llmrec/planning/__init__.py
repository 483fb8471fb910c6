"""What a training will cost, before it starts: parameters, tokens, floating-point operations, memory, hours."""

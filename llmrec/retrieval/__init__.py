"""Encode a catalogue, and recommend from it."""

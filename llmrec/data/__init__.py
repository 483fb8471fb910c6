"""Interactions and items in; filtered, split histories and a catalogue out. Knows no torch."""

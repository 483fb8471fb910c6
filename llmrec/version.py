"""The version of the three packages; `setup.cfg` reads it from here."""

__version__ = "0.1.0"

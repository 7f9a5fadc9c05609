"""Booted Linux machines on this computer, see ../machines.py; each module is one part of it."""

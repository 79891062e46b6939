"""Scaling laws: isoFLOP curves, loss surfaces of one family and of many, and how well they predict."""

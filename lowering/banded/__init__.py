"""Attention under a mask that leaves whole blocks of keys out: which way to compute it, and how to write it down."""

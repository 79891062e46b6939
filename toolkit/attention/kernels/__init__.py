"""Triton kernels of attention; importing this package needs no Triton, importing ``launch`` does."""

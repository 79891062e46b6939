"""Triton kernels of the experts; importing this package needs no Triton, importing ``launch`` does.

After Guo et al. 2025, SonicMoE (arXiv 2512.14080): rows are gathered where they are multiplied and activations are
applied there, a gather and a sum put tokens together again, and no (triples, dim) tensor outlives its pass.
"""

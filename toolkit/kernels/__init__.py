"""What Triton kernels of every room share: families of cards, the launch, and compiling for a card that is not here.

Importing this package needs no Triton; importing ``toolkit.kernels.compile`` does.
"""

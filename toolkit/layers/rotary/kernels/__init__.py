"""The rotation as a Triton kernel: ``rotate`` turns one tile, ``launch`` shares out a tensor, ``resources`` checks.

Importing the modules needs Triton; nothing above imports them before a kernel is to run.
"""
